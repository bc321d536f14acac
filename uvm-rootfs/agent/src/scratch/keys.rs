//! Keys, drawn from the kernel's generator.

use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::Zeroizing;

use crate::error::{AgentError, Context, Result};

/// Bytes of key: 32 of HMAC-SHA-256, then two of AES-256 for XTS, in the order in which dm-crypt takes them.
pub const KEY_BYTES: usize = 32 + 64;

/// The keys of one scratch device, [`KEY_BYTES`] of them; wiped when dropped, and on the heap so that no move leaves a
/// copy behind.
pub type Keys = Zeroizing<Vec<u8>>;

/// New keys. Waits until the kernel has entropy.
///
/// # Errors
/// If the kernel gives none.
pub fn draw() -> Result<Keys> {
    let mut keys = Zeroizing::new(vec![0; KEY_BYTES]);
    fill(&mut keys)?;
    Ok(keys)
}

/// Random bytes that need not be kept secret for long.
///
/// # Errors
/// If the kernel gives none.
pub fn bytes() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// Requests of at most 256 bytes are answered whole.
fn fill(bytes: &mut [u8]) -> Result<()> {
    let wanted = bytes.len();
    let given = getrandom(bytes, GetRandomFlags::empty()).doing(|| "draw keys".to_owned())?;
    if given == wanted {
        return Ok(());
    }
    Err(AgentError::Runtime(format!("draw keys: {given} random bytes, expected {wanted}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_keys_are_alike() {
        let (a, b) = (draw().unwrap(), draw().unwrap());
        assert!(*a != *b && a[..32] != a[32..64] && a[32..64] != a[64..]);
    }
}
