//! Buffers, status codes and the panic barrier shared by all exported functions.

use std::panic::{catch_unwind, AssertUnwindSafe};

/// Keep in step with `enum CapstanTextStatus` in `rust_abi.h`.
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    Ok = 0,
    /// The caller's input is wrong: not UTF-8, not JSON, not a supported file.
    Invalid = 1,
    /// The template called raise_exception().
    Raised = 2,
    /// The template ran past its instruction or recursion limit.
    Limit = 3,
    /// A panic inside the crate.
    Internal = 4,
}

pub struct Failure {
    pub status: Status,
    pub message: String,
}

impl Failure {
    pub fn invalid(message: impl Into<String>) -> Failure {
        Failure { status: Status::Invalid, message: message.into() }
    }
}

/// A borrowed byte range of the caller.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Slice {
    pub data: *const u8,
    pub size: usize,
}

impl Slice {
    /// # Safety
    /// `data` points to `size` readable bytes that outlive the call.
    pub unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.size == 0 {
            &[]
        } else {
            std::slice::from_raw_parts(self.data, self.size)
        }
    }

    /// # Safety
    /// As `bytes`.
    pub unsafe fn text<'a>(self, what: &str) -> Result<&'a str, Failure> {
        std::str::from_utf8(self.bytes()).map_err(|e| {
            Failure::invalid(format!("{what} is not valid UTF-8 at byte {}", e.valid_up_to()))
        })
    }
}

/// Bytes owned by the crate.
#[repr(C)]
pub struct Bytes {
    data: *mut u8,
    size: usize,
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        let boxed = bytes.into_boxed_slice();
        let size = boxed.len();
        Bytes { data: Box::into_raw(boxed) as *mut u8, size }
    }
}

impl From<String> for Bytes {
    fn from(text: String) -> Bytes {
        text.into_bytes().into()
    }
}

/// Token ids or offsets owned by the crate.
#[repr(C)]
pub struct Ids {
    data: *mut u32,
    size: usize,
}

impl From<Vec<u32>> for Ids {
    fn from(ids: Vec<u32>) -> Ids {
        let boxed = ids.into_boxed_slice();
        let size = boxed.len();
        Ids { data: Box::into_raw(boxed) as *mut u32, size }
    }
}

/// # Safety
/// `bytes` was filled by this crate and is freed once.
#[no_mangle]
pub unsafe extern "C" fn capstan_text_bytes_free(bytes: Bytes) {
    if !bytes.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(bytes.data, bytes.size)));
    }
}

/// # Safety
/// `ids` was filled by this crate and is freed once.
#[no_mangle]
pub unsafe extern "C" fn capstan_text_ids_free(ids: Ids) {
    if !ids.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(ids.data, ids.size)));
    }
}

/// Runs `body`; on success writes to `out`, else to `error`. Panics become `Status::Internal`.
///
/// # Safety
/// `out` and `error` are writable.
pub unsafe fn guard<T>(
    out: *mut T,
    error: *mut Bytes,
    body: impl FnOnce() -> Result<T, Failure>,
) -> i32 {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => {
            out.write(value);
            return Status::Ok as i32;
        }
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let cause = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown cause");
            Failure { status: Status::Internal, message: format!("internal failure: {cause}") }
        }
    };
    error.write(failure.message.into());
    failure.status as i32
}
