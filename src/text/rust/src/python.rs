//! The parts of Python that chat templates see: `str()`, string methods, strftime; JSON is in python_json.
//! Python 3 and transformers' `chat_template_utils` are the reference.

use minijinja::value::{from_args, Kwargs, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};
use std::fmt::Write;

/// Nesting beyond this is an error rather than a stack overflow; JSON input stops at 128.
pub const MAX_DEPTH: usize = 256;

pub fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// `repr(float)`: shortest digits that round-trip, exponent form below 1e-4 and from 1e16.
pub fn float_repr(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{x:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{x}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}


/// `repr(str)`: single quotes unless the text has those and no double ones.
fn string_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || (0x7f..=0xa0).contains(&(c as u32)) || c == '\u{ad}' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

fn repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid(format!("cannot print a value nested deeper than {MAX_DEPTH}")));
    }
    match value.kind() {
        ValueKind::String => string_repr(out, value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float_repr(f64::try_from(value.clone())?))
        }
        ValueKind::Seq => {
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter()? {
                if count > 0 {
                    out.push_str(", ");
                }
                repr(out, &item, depth + 1)?;
                count += 1;
            }
            out.push_str(match (tuple, count) {
                (true, 1) => ",)",
                (true, _) => ")",
                _ => "]",
            });
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(out, &key, depth + 1)?;
                out.push_str(": ");
                repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
    Ok(())
}

/// Whether `str()` of the value needs `repr`: the engine prints the rest as Python does.
fn structured(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Number => !value.is_integer(),
        ValueKind::Seq => true,
        // Namespaces, loops and other engine objects are maps too; only plain data is a dict.
        ValueKind::Map => value.as_object().is_some_and(|o| o.enumerator_len().is_some()),
        _ => false,
    }
}

fn str_of(value: &Value) -> Result<String, Error> {
    if !structured(value) {
        return Ok(value.to_string());
    }
    let mut text = String::new();
    repr(&mut text, value, 0)?;
    Ok(text)
}

/// What `{{ value }}` prints: Python's `str(value)`.
pub fn format_output(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if !structured(value) {
        return minijinja::escape_formatter(out, state, value);
    }
    out.write_str(&str_of(value)?).map_err(Error::from)
}

/// The filter `string`.
pub fn string(value: &Value) -> Result<Value, Error> {
    match value.as_str() {
        Some(_) => Ok(value.clone()),
        None => str_of(value).map(Value::from),
    }
}

/// The test `iterable`: the engine lets templates loop over none, Python does not.
pub fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// The test `sequence`, which in Jinja2 is "has a length and items": strings and dicts too.
pub fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
}

/// The filter `items`: pairs of a dict, nothing for an undefined value.
pub fn items(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    minijinja::filters::items(value)
}

/// The filter `length`: an undefined value is empty.
pub fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    minijinja::filters::length(value)
}

/// `str.isspace()` for one character: White_Space and the four information separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let drop = |c: char| chars.map_or_else(|| is_space(c), |set| set.contains(c));
    let text = if left { text.trim_start_matches(drop) } else { text };
    if right {
        text.trim_end_matches(drop)
    } else {
        text
    }
}

pub fn trim(value: &Value, chars: Option<&str>) -> String {
    match value.as_str() {
        Some(text) => strip(text, chars, true, true).to_string(),
        None => strip(&value.to_string(), chars, true, true).to_string(),
    }
}

fn strings<'a>(parts: impl IntoIterator<Item = &'a str>) -> Value {
    Value::from(parts.into_iter().map(Value::from).collect::<Vec<_>>())
}

/// str.split / str.rsplit.
fn split(text: &str, sep: Option<&str>, max: i64, from_right: bool) -> Result<Value, Error> {
    let limit = usize::try_from(max).unwrap_or(usize::MAX);
    let mut parts = Vec::new();
    match sep {
        Some("") => return Err(invalid("empty separator")),
        Some(sep) if from_right => {
            parts.extend(text.rsplitn(limit.saturating_add(1), sep));
            parts.reverse();
        }
        Some(sep) => parts.extend(text.splitn(limit.saturating_add(1), sep)),
        None => {
            let mut rest = strip(text, None, true, true);
            while !rest.is_empty() && parts.len() < limit {
                let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
                let Some(cut) = cut else { break };
                let next = cut + rest[cut..].chars().next().map_or(1, char::len_utf8);
                if from_right {
                    parts.push(&rest[next..]);
                    rest = rest[..cut].trim_end_matches(is_space);
                } else {
                    parts.push(&rest[..cut]);
                    rest = rest[next..].trim_start_matches(is_space);
                }
            }
            if !rest.is_empty() {
                // With a limit the remainder keeps the white space on its outer side.
                let whole = if from_right { strip(text, None, false, true) } else { strip(text, None, true, false) };
                let rest = if parts.len() < limit {
                    rest
                } else if from_right {
                    &whole[..rest.len() + (whole.len() - whole.trim_start_matches(is_space).len())]
                } else {
                    &whole[whole.len() - rest.len() - (whole.len() - whole.trim_end_matches(is_space).len())..]
                };
                parts.push(rest);
            }
            if from_right {
                parts.reverse();
            }
        }
    }
    Ok(strings(parts))
}

fn splitlines(text: &str, keep_ends: bool) -> Value {
    let breaks = |c: char| matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(cut) = rest.find(breaks) {
        let mut next = cut + rest[cut..].chars().next().map_or(1, char::len_utf8);
        if rest[cut..].starts_with("\r\n") {
            next = cut + 2;
        }
        parts.push(&rest[..if keep_ends { next } else { cut }]);
        rest = &rest[next..];
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    strings(parts)
}

fn tuple3(a: &str, b: &str, c: &str) -> Value {
    Value::from(Tuple::from([Value::from(a), Value::from(b), Value::from(c)]))
}

fn pad(text: &str, args: &[Value], left: fn(usize, usize) -> usize) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let fill = fill.unwrap_or(" ");
    if fill.chars().count() != 1 {
        return Err(invalid("The fill character must be exactly one character long"));
    }
    let width = usize::try_from(width).unwrap_or(0).min(1 << 20);
    let missing = width.saturating_sub(text.chars().count());
    let before = left(missing, width);
    Ok(Value::from(format!("{}{text}{}", fill.repeat(before), fill.repeat(missing - before))))
}

fn position(text: &str, at: Option<usize>) -> Result<Value, Error> {
    let at = at.ok_or_else(|| invalid("substring not found"))?;
    Ok(Value::from(text[..at].chars().count()))
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let run = || -> Result<Value, Error> {
        Ok(match method {
            "strip" | "lstrip" | "rstrip" => {
                let (chars,): (Option<&str>,) = from_args(args)?;
                Value::from(strip(text, chars, method != "rstrip", method != "lstrip"))
            }
            "split" | "rsplit" => {
                let (sep, max, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
                let sep = match sep {
                    Some(sep) => Some(sep),
                    None => kwargs.get::<Option<&str>>("sep")?,
                };
                let max = match max {
                    Some(max) => Some(max),
                    None => kwargs.get::<Option<i64>>("maxsplit")?,
                };
                kwargs.assert_all_used()?;
                return split(text, sep, max.unwrap_or(-1), method == "rsplit");
            }
            "splitlines" => {
                let (keep, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
                let named = kwargs.get::<Option<bool>>("keepends")?;
                kwargs.assert_all_used()?;
                splitlines(text, keep.or(named).unwrap_or(false))
            }
            "isspace" => {
                let () = from_args(args)?;
                Value::from(!text.is_empty() && text.chars().all(is_space))
            }
            "isdecimal" => {
                let () = from_args(args)?;
                Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit()))
            }
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                Value::from(text.strip_prefix(prefix).unwrap_or(text))
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                Value::from(text.strip_suffix(suffix).unwrap_or(text))
            }
            "partition" | "rpartition" => {
                let (sep,): (&str,) = from_args(args)?;
                if sep.is_empty() {
                    return Err(invalid("empty separator"));
                }
                let last = method == "rpartition";
                match if last { text.rsplit_once(sep) } else { text.split_once(sep) } {
                    Some((before, after)) => tuple3(before, sep, after),
                    None if last => tuple3("", "", text),
                    None => tuple3(text, "", ""),
                }
            }
            "index" | "rindex" => {
                let (what,): (&str,) = from_args(args)?;
                let at = if method == "index" { text.find(what) } else { text.rfind(what) };
                return position(text, at);
            }
            "ljust" => return pad(text, args, |_, _| 0),
            "rjust" => return pad(text, args, |missing, _| missing),
            // CPython puts the odd space left when the width is odd.
            "center" => return pad(text, args, |missing, width| missing / 2 + (missing & width & 1)),
            "zfill" => {
                let (width,): (i64,) = from_args(args)?;
                let (sign, digits) = match text.strip_prefix(['+', '-']) {
                    Some(digits) => (&text[..1], digits),
                    None => ("", text),
                };
                let width = usize::try_from(width).unwrap_or(0).min(1 << 20);
                let missing = width.saturating_sub(text.chars().count());
                Value::from(format!("{sign}{}{digits}", "0".repeat(missing)))
            }
            "casefold" => {
                let () = from_args(args)?;
                Value::from(text.to_lowercase().replace('ß', "ss"))
            }
            "swapcase" => {
                let () = from_args(args)?;
                let mut out = String::with_capacity(text.len());
                for c in text.chars() {
                    if c.is_uppercase() {
                        out.extend(c.to_lowercase());
                    } else {
                        out.extend(c.to_uppercase());
                    }
                }
                Value::from(out)
            }
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        })
    };
    match run() {
        Err(e) if e.kind() == ErrorKind::UnknownMethod => None,
        result => Some(result),
    }
}

/// Methods of Python's str, list and dict that templates call.
pub fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        if let Some(result) = string_method(text, name, args) {
            return result;
        }
    }
    match (value.kind(), name) {
        (ValueKind::Map, "copy") => {
            let () = from_args(args)?;
            Ok(value.clone())
        }
        (ValueKind::Seq, "index") => {
            let (what,): (&Value,) = from_args(args)?;
            value
                .try_iter()?
                .position(|item| item == *what)
                .map(Value::from)
                .ok_or_else(|| invalid("value is not in list"))
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// transformers' strftime_now(format): local time through the C library's strftime.
pub fn strftime_now(format: &str) -> Result<String, Error> {
    if format.is_empty() {
        return Ok(String::new());
    }
    // A leading character makes an empty expansion distinguishable from a buffer too small.
    let c_format = std::ffi::CString::new(format!("x{format}"))
        .map_err(|_| invalid("strftime_now: the format contains a NUL character"))?;
    let mut buffer = vec![0u8; format.len() * 32 + 256];
    let written = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut parts: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut parts).is_null() {
            return Err(invalid("strftime_now: the local time is not available"));
        }
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), c_format.as_ptr(), &parts)
    };
    if written == 0 {
        return Err(invalid(format!("strftime_now: the format {format:?} expands too far")));
    }
    Ok(String::from_utf8_lossy(&buffer[1..written]).into_owned())
}
