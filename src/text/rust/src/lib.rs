//! C ABI over `tokenizers` and `minijinja`. The C side of it is `src/text/rust_abi.h`.
//!
//! Rules of the boundary: no panic crosses it, every error comes back as a status and a UTF-8
//! message, every buffer handed out is freed by `capstan_text_bytes_free` / `..._ids_free`, and
//! every handle may be used from several threads at once.

mod ffi;
mod python;
mod python_json;
mod template;
mod tokenizer;
