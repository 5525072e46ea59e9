//! `tokenizers` behind handles.

use crate::ffi::{guard, Bytes, Failure, Ids, Slice};
use serde_json::{json, Value};
use tokenizers::{ModelWrapper, PostProcessorWrapper, Tokenizer};

/// Ids above this are taken for a damaged file; the largest vocabulary in use has 262,144.
const MAX_ID: u32 = 1 << 24;

const FLAG_PRESENT: u8 = 1;
const FLAG_ADDED: u8 = 2;
const FLAG_SPECIAL: u8 = 4;

/// What tokenizer_config.json says about BOS and EOS around a text.
#[repr(C)]
pub struct PostOptions {
    /// Non-zero: replace the file's post-processor by one that adds `bos` and `eos` where non-empty.
    replace: i32,
    bos: Slice,
    eos: Slice,
}

/// All tokens of a vocabulary: `text` holds their strings one after the other, `ends[i]` is where
/// that of id i ends, `flags[i]` is a set of FLAG_*.
#[repr(C)]
pub struct Tokens {
    text: Bytes,
    ends: Ids,
    flags: Bytes,
}

fn failure(context: &str, error: impl std::fmt::Display) -> Failure {
    Failure::invalid(format!("{context}: {error}"))
}

/// The decoder must be the byte-level one: everything outside the crate relies on its byte map.
fn check_kind(tokenizer: &Tokenizer) -> Result<(), Failure> {
    if !matches!(tokenizer.get_model(), ModelWrapper::BPE(_)) {
        return Err(Failure::invalid(
            "the model type is not BPE; only byte-level BPE tokenizers are supported",
        ));
    }
    let decoder = serde_json::to_value(tokenizer.get_decoder()).unwrap_or(Value::Null);
    let kind = |v: &Value| v.get("type").and_then(Value::as_str).unwrap_or("none").to_string();
    let kinds: Vec<String> = match decoder.get("decoders").and_then(Value::as_array) {
        Some(list) => list.iter().map(kind).collect(),
        None => vec![kind(&decoder)],
    };
    if kinds != ["ByteLevel"] {
        return Err(Failure::invalid(format!(
            "the decoder is {}; only byte-level BPE tokenizers (decoder ByteLevel) are supported",
            kinds.join(" + ")
        )));
    }
    Ok(())
}

/// The post-processor transformers builds for add_bos_token / add_eos_token.
fn template_processing(
    tokenizer: &Tokenizer,
    bos: &str,
    eos: &str,
) -> Result<PostProcessorWrapper, Failure> {
    let mut special_tokens = serde_json::Map::new();
    let mut single = Vec::new();
    let mut piece = |token: &str, key: &str| -> Result<Value, Failure> {
        let id = tokenizer.token_to_id(token).ok_or_else(|| {
            Failure::invalid(format!(
                "{key} is set but the token {token:?} is not in the vocabulary"
            ))
        })?;
        special_tokens
            .insert(token.to_string(), json!({"id": token, "ids": [id], "tokens": [token]}));
        Ok(json!({"SpecialToken": {"id": token, "type_id": 0}}))
    };
    if !bos.is_empty() {
        single.push(piece(bos, "add_bos_token")?);
    }
    single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
    if !eos.is_empty() {
        single.push(piece(eos, "add_eos_token")?);
    }
    let mut pair = single.clone();
    pair.push(json!({"Sequence": {"id": "B", "type_id": 1}}));
    serde_json::from_value(json!({
        "type": "TemplateProcessing", "single": single, "pair": pair,
        "special_tokens": special_tokens,
    }))
    .map_err(|e| failure("post-processor", e))
}

fn build(json: &[u8], options: &PostOptions) -> Result<Box<Tokenizer>, Failure> {
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(|e| failure("not a tokenizer", e))?;
    check_kind(&tokenizer)?;
    // A file saved after a truncated or padded call keeps those settings; a server must not.
    tokenizer.with_truncation(None).map_err(|e| failure("truncation", e))?;
    tokenizer.with_padding(None);
    let (bos, eos) =
        unsafe { (options.bos.text("the BOS token")?, options.eos.text("the EOS token")?) };
    if options.replace != 0 {
        let post = template_processing(&tokenizer, bos, eos)?;
        tokenizer.with_post_processor(Some(post));
    }
    Ok(Box::new(tokenizer))
}

fn tokens(tokenizer: &Tokenizer) -> Result<Tokens, Failure> {
    let added = tokenizer.get_added_tokens_decoder();
    let vocabulary = tokenizer.get_vocab(true);
    let highest = vocabulary.values().chain(added.keys()).copied().max();
    if highest.is_some_and(|id| id >= MAX_ID) {
        return Err(Failure::invalid(format!(
            "token id {} is beyond the supported {MAX_ID}",
            highest.unwrap_or_default()
        )));
    }
    let size = highest.map_or(0, |id| id as usize + 1);
    let mut strings: Vec<&str> = vec![""; size];
    let mut flags = vec![0u8; size];
    for (token, id) in &vocabulary {
        strings[*id as usize] = token;
        flags[*id as usize] = FLAG_PRESENT;
    }
    for (id, token) in &added {
        let i = *id as usize;
        strings[i] = &token.content;
        flags[i] = FLAG_PRESENT | FLAG_ADDED | if token.special { FLAG_SPECIAL } else { 0 };
    }
    let mut text = Vec::with_capacity(strings.iter().map(|s| s.len()).sum());
    let mut ends = Vec::with_capacity(size);
    for string in strings {
        text.extend_from_slice(string.as_bytes());
        let end = u32::try_from(text.len())
            .map_err(|_| Failure::invalid("the vocabulary's text exceeds 4 GiB"))?;
        ends.push(end);
    }
    Ok(Tokens { text: text.into(), ends: ends.into(), flags: flags.into() })
}

/// # Safety
/// Pointers are valid; `out` receives a handle for `capstan_tokenizer_free`.
#[no_mangle]
pub unsafe extern "C" fn capstan_tokenizer_create(
    json: Slice,
    options: *const PostOptions,
    out: *mut *mut Tokenizer,
    error: *mut Bytes,
) -> i32 {
    guard(out, error, || Ok(Box::into_raw(build(json.bytes(), &*options)?)))
}

/// # Safety
/// `tokenizer` came from `capstan_tokenizer_create` and is freed once.
#[no_mangle]
pub unsafe extern "C" fn capstan_tokenizer_free(tokenizer: *mut Tokenizer) {
    if !tokenizer.is_null() {
        drop(Box::from_raw(tokenizer));
    }
}

/// # Safety
/// Pointers are valid.
#[no_mangle]
pub unsafe extern "C" fn capstan_tokenizer_tokens(
    tokenizer: *const Tokenizer,
    out: *mut Tokens,
    error: *mut Bytes,
) -> i32 {
    guard(out, error, || tokens(&*tokenizer))
}

/// # Safety
/// Pointers are valid.
#[no_mangle]
pub unsafe extern "C" fn capstan_tokenizer_encode(
    tokenizer: *const Tokenizer,
    text: Slice,
    add_special_tokens: i32,
    out: *mut Ids,
    error: *mut Bytes,
) -> i32 {
    guard(out, error, || {
        let text = text.text("the text to tokenize")?;
        let encoding = (*tokenizer)
            .encode_fast(text, add_special_tokens != 0)
            .map_err(|e| failure("cannot tokenize", e))?;
        Ok(encoding.get_ids().to_vec().into())
    })
}

/// The serialised tokenizer.json, for comparison with a reference.
///
/// # Safety
/// Pointers are valid.
#[no_mangle]
pub unsafe extern "C" fn capstan_tokenizer_to_json(
    tokenizer: *const Tokenizer,
    out: *mut Bytes,
    error: *mut Bytes,
) -> i32 {
    guard(out, error, || {
        let json = (*tokenizer).to_string(false).map_err(|e| failure("cannot serialise", e))?;
        Ok(json.into())
    })
}
