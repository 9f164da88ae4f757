//! Random keys and names, from the operating system's generator.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use crate::answer::Refusal;

pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| {
        Refusal::internal(&format!("no random bytes from the operating system: {e}"))
    })?;
    Ok(bytes)
}

/// Letters and digits, each equally likely.
pub(crate) fn alphanumeric(length: usize) -> Result<String, Refusal> {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = String::with_capacity(length);
    while text.len() < length {
        // 248 is the greatest multiple of 62 in a byte: what lies above would favour the first letters.
        let fair = bytes::<64>()?.into_iter().filter(|byte| *byte < 248);
        text.extend(
            fair.map(|byte| char::from(ALPHABET[usize::from(byte) % 62])).take(length - text.len()),
        );
    }
    Ok(text)
}

/// 32 bytes, as `vault operator init` prints an unseal key.
pub(crate) fn base64_key() -> Result<String, Refusal> {
    Ok(BASE64.encode(bytes::<32>()?))
}
