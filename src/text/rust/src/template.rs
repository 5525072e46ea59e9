//! `minijinja` set up as transformers sets up jinja2 for chat templates.

use crate::ffi::{guard, Bytes, Failure, Slice, Status};
use crate::{python, python_json};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde_json::{json, Map, Value as Json};
use std::borrow::Cow;

const NAME: &str = "chat template";

/// Instructions a rendering may execute: a base, more for a longer context, and a cap. Shipped
/// templates take 20 to 60 instructions per message, so the base alone serves 16,000 messages.
const FUEL_BASE: u64 = 1_000_000;
const FUEL_PER_BYTE: u64 = 10;
const FUEL_MAX: u64 = 5_000_000;

/// Stack of a rendering, touched only as far as it is used. A template can nest lists about one
/// level per six instructions, and dropping, printing or comparing them recurses: 500 bytes a level
/// at most, so 5,000,000 instructions fit. (Dropping takes about 60 bytes, measured.)
const STACK_BYTES: usize = 512 << 20;

/// Nested blocks, macros and includes; minijinja validates 500 against 8 MiB stacks.
const RECURSION_LIMIT: usize = 400;

pub struct Template {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// Marks the error that raise_exception() makes, wherever it is wrapped.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let text = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, text.clone()).with_source(Raised(text)))
}

fn explain(error: &Error) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(Raised(message)) = e.downcast_ref::<Raised>() {
            return Failure { status: Status::Raised, message: message.clone() };
        }
        if let Some(e) = e.downcast_ref::<Error>() {
            if e.kind() == ErrorKind::OutOfFuel {
                let message = "the chat template does not end: it used up its instruction limit";
                return Failure { status: Status::Limit, message: message.into() };
            }
        }
        cause = e.source();
    }
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(e) = source {
        message.push_str(": ");
        message.push_str(&e.to_string());
        source = e.source();
    }
    Failure::invalid(message)
}

/// Where the tag, expression or string that starts at `at` ends: after the closing `close`,
/// which does not count inside a quoted string.
fn skip_code(source: &str, at: usize, close: &str) -> usize {
    let bytes = source.as_bytes();
    let mut i = at;
    let mut quote = None;
    while i < bytes.len() {
        match quote {
            Some(_) if bytes[i] == b'\\' => i += 1,
            Some(q) if bytes[i] == q => quote = None,
            Some(_) => {}
            None if bytes[i] == b'"' || bytes[i] == b'\'' => quote = Some(bytes[i]),
            None if source[i..].starts_with(close) => return i + close.len(),
            None => {}
        }
        i += 1;
        while !source.is_char_boundary(i.min(bytes.len())) {
            i += 1;
        }
    }
    bytes.len()
}

/// `{% generation %}` marks assistant text for training masks. Here it means only its scope, which
/// is that of `{% with %}`.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut copied = 0;
    let mut at = 0;
    while let Some(found) = source[at..].find('{') {
        let start = at + found;
        let rest = &source[start..];
        if rest.starts_with("{#") {
            at = rest.find("#}").map_or(source.len(), |end| start + end + 2);
        } else if rest.starts_with("{{") {
            at = skip_code(source, start + 2, "}}");
        } else if rest.starts_with("{%") {
            let end = skip_code(source, start + 2, "%}");
            let inside = source[start + 2..end].trim_end_matches("%}");
            let word = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
            at = end;
            let replacement = match word {
                "generation" => "with",
                "endgeneration" => "endwith",
                "raw" => {
                    let tail = &source[end..];
                    at = tail.find("endraw").map_or(source.len(), |e| end + e);
                    continue;
                }
                _ => continue,
            };
            let from = start + 2 + inside.find(word).unwrap_or(0);
            out.push_str(&source[copied..from]);
            out.push_str(replacement);
            copied = from + word.len();
        } else {
            at = start + 1;
        }
    }
    out.push_str(&source[copied..]);
    Cow::Owned(out)
}

fn compile(source: &str, bos: &str, eos: &str) -> Result<Box<Template>, Failure> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(|e| explain(&e))?;
    environment.set_syntax(syntax);
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(python::format_output);
    environment.add_filter("tojson", python_json::tojson);
    environment.add_filter("trim", python::trim);
    environment.add_filter("string", python::string);
    environment.add_filter("items", python::items);
    environment.add_filter("length", python::length);
    environment.add_filter("count", python::length);
    environment.add_test("iterable", python::is_iterable);
    environment.add_test("sequence", python::is_sequence);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", python::strftime_now);
    environment
        .add_template_owned(NAME, without_generation_tags(source).into_owned())
        .map_err(|e| explain(&e))?;
    Ok(Box::new(Template { environment, bos: bos.to_string(), eos: eos.to_string() }))
}

/// As transformers does: reasoning passed under any of its names is readable as
/// `reasoning_content` and `thinking`.
fn alias_reasoning(message: &mut Map<String, Json>) {
    let found = ["reasoning_content", "thinking", "reasoning"]
        .iter()
        .find_map(|name| message.get(*name).filter(|v| !v.is_null()).cloned());
    if let Some(reasoning) = found {
        message.entry("thinking").or_insert_with(|| reasoning.clone());
        message.insert("reasoning_content".into(), reasoning);
    }
}

fn to_value(json: Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (_, Some(u)) => Value::from(u),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s),
        Json::Array(items) => Value::from(items.into_iter().map(to_value).collect::<Vec<_>>()),
        Json::Object(pairs) => Value::from_pairs(pairs.into_iter().map(|(k, v)| (k, to_value(v)))),
    }
}

fn context(template: &Template, bytes: &[u8]) -> Result<Value, Failure> {
    let parsed: Json = serde_json::from_slice(bytes)
        .map_err(|e| Failure::invalid(format!("the template context is not valid JSON: {e}")))?;
    let Json::Object(mut given) = parsed else {
        return Err(Failure::invalid("the template context is not a JSON object"));
    };
    match given.get_mut("messages") {
        Some(Json::Array(messages)) => {
            for (i, message) in messages.iter_mut().enumerate() {
                match message {
                    Json::Object(message) => alias_reasoning(message),
                    _ => {
                        return Err(Failure::invalid(format!("messages[{i}] is not an object")))
                    }
                }
            }
        }
        _ => return Err(Failure::invalid("\"messages\" is missing or not a list")),
    }
    // transformers defines these even when the caller does not.
    let mut all = Map::new();
    all.insert("tools".into(), Json::Null);
    all.insert("documents".into(), Json::Null);
    all.insert("add_generation_prompt".into(), json!(false));
    if !template.bos.is_empty() {
        all.insert("bos_token".into(), json!(template.bos));
    }
    if !template.eos.is_empty() {
        all.insert("eos_token".into(), json!(template.eos));
    }
    all.append(&mut given);
    Ok(to_value(Json::Object(all)))
}

fn render_here(template: &Template, bytes: &[u8]) -> Result<String, Failure> {
    let context = context(template, bytes)?;
    let mut environment = template.environment.clone();
    let fuel = FUEL_BASE + FUEL_PER_BYTE.saturating_mul(bytes.len() as u64);
    environment.set_fuel(Some(fuel.min(FUEL_MAX)));
    let compiled = environment.get_template(NAME).map_err(|e| explain(&e))?;
    compiled.render(context).map_err(|e| explain(&e))
}

/// Renders on a stack of its own, so that no template can overflow the caller's.
fn render(template: &Template, bytes: &[u8]) -> Result<String, Failure> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("chat-template".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || render_here(template, bytes))
            .map_err(|e| Failure {
                status: Status::Internal,
                message: format!("cannot reserve {} MiB of stack: {e}", STACK_BYTES >> 20),
            })?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// # Safety
/// Pointers are valid; `out` receives a handle for `capstan_template_free`.
#[no_mangle]
pub unsafe extern "C" fn capstan_template_compile(
    source: Slice,
    bos: Slice,
    eos: Slice,
    out: *mut *mut Template,
    error: *mut Bytes,
) -> i32 {
    guard(out, error, || {
        let source = source.text("the chat template")?;
        let template = compile(source, bos.text("the BOS token")?, eos.text("the EOS token")?)?;
        Ok(Box::into_raw(template))
    })
}

/// # Safety
/// `template` came from `capstan_template_compile` and is freed once.
#[no_mangle]
pub unsafe extern "C" fn capstan_template_free(template: *mut Template) {
    if !template.is_null() {
        drop(Box::from_raw(template));
    }
}

/// # Safety
/// Pointers are valid.
#[no_mangle]
pub unsafe extern "C" fn capstan_template_render(
    template: *const Template,
    context_json: Slice,
    out: *mut Bytes,
    error: *mut Bytes,
) -> i32 {
    guard(out, error, || Ok(render(&*template, context_json.bytes())?.into()))
}
