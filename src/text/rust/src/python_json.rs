//! Python's `json.dumps` as chat templates see it through transformers' `tojson` filter.

use crate::python::{float_repr, invalid, MAX_DEPTH};
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, Value};
use std::fmt::Write;

fn json_float(x: f64) -> String {
    match float_repr(x).as_str() {
        "nan" => "NaN".into(),
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        finite => finite.into(),
    }
}

struct JsonStyle {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

fn json_string(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || (ensure_ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn json_key(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_string(),
        ValueKind::None => "null".into(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
        ValueKind::Number if key.is_integer() => key.to_string(),
        ValueKind::Number => json_float(f64::try_from(key.clone())?),
        kind => return Err(invalid(format!("a {kind} cannot be a key in tojson"))),
    })
}

fn json_value(out: &mut String, value: &Value, style: &JsonStyle, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid(format!("tojson: nested deeper than {MAX_DEPTH}")));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if value.is_integer() => {
            let _ = write!(out, "{value}");
        }
        ValueKind::Number => out.push_str(&json_float(f64::try_from(value.clone())?)),
        ValueKind::String => {
            json_string(out, value.as_str().unwrap_or_default(), style.ensure_ascii)
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let mut items = Vec::new();
            for item in value.try_iter()? {
                items.push((None, item));
            }
            json_items(out, ('[', ']'), items, style, depth)?;
        }
        ValueKind::Map => {
            let mut items = Vec::new();
            for key in value.try_iter()? {
                items.push((Some(json_key(&key)?), value.get_item(&key)?));
            }
            if style.sort_keys {
                items.sort_by(|a, b| a.0.cmp(&b.0));
            }
            json_items(out, ('{', '}'), items, style, depth)?;
        }
        kind => return Err(invalid(format!("a value of type {kind} is not JSON serializable"))),
    }
    Ok(())
}

fn json_items(
    out: &mut String,
    brackets: (char, char),
    items: Vec<(Option<String>, Value)>,
    style: &JsonStyle,
    depth: usize,
) -> Result<(), Error> {
    let newline = |out: &mut String, level: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            for _ in 0..level {
                out.push_str(indent);
            }
        }
    };
    out.push(brackets.0);
    let empty = items.is_empty();
    for (i, (key, item)) in items.into_iter().enumerate() {
        if i > 0 {
            out.push_str(&style.item_separator);
        }
        newline(out, depth + 1);
        if let Some(key) = key {
            json_string(out, &key, style.ensure_ascii);
            out.push_str(&style.key_separator);
        }
        json_value(out, &item, style, depth + 1)?;
    }
    if !empty {
        newline(out, depth);
    }
    out.push(brackets.1);
    Ok(())
}

/// transformers' filter: tojson(x, ensure_ascii=False, indent=None, separators=None,
/// sort_keys=False), which is json.dumps without HTML escaping.
pub fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    if args.len() > NAMES.len() {
        return Err(invalid("tojson takes at most 4 arguments"));
    }
    let argument = |i: usize| -> Result<Option<Value>, Error> {
        let value = match args.get(i) {
            Some(value) => Some(value.clone()),
            None => kwargs.get::<Option<Value>>(NAMES[i])?,
        };
        Ok(value.filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let ensure_ascii = argument(0)?.is_some_and(|v| v.is_true());
    let indent = match argument(1)? {
        None => None,
        Some(v) => Some(match v.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(i64::try_from(v)?.clamp(0, 256) as usize),
        }),
    };
    let (item_separator, key_separator) = match argument(2)? {
        None if indent.is_some() => (",".to_string(), ": ".to_string()),
        None => (", ".to_string(), ": ".to_string()),
        Some(v) => {
            let pair: Vec<Value> = v.try_iter()?.collect();
            match pair.iter().map(Value::as_str).collect::<Vec<_>>()[..] {
                [Some(item), Some(key)] => (item.to_string(), key.to_string()),
                _ => return Err(invalid("tojson: separators must be a pair of strings")),
            }
        }
    };
    let sort_keys = argument(3)?.is_some_and(|v| v.is_true());
    kwargs.assert_all_used()?;
    let style = JsonStyle { ensure_ascii, indent, item_separator, key_separator, sort_keys };
    let mut out = String::new();
    json_value(&mut out, value, &style, 0)?;
    Ok(Value::from(out))
}
