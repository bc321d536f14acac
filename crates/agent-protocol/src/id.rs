//! Names of containers and processes.
//!
//! Ids become path components and cgroup names in the guest, so they are checked before any use.

use thiserror::Error;

/// Longest id in bytes.
pub const MAX_LEN: usize = 128;

/// Why an id is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IdError {
    /// The id is empty or too long.
    #[error("id of {0} bytes: expected 1 to {MAX_LEN}")]
    Length(usize),
    /// The id holds a character outside `[A-Za-z0-9_.-]`, or does not start with a letter or digit.
    #[error(
        "id has {found:?} at byte {at}: expected letters, digits, '_', '.', '-', first a letter or digit"
    )]
    Character {
        /// Byte offset.
        at: usize,
        /// The offending byte, escaped when shown.
        found: char,
    },
}

/// Accepts `[A-Za-z0-9][A-Za-z0-9_.-]{0,127}`.
///
/// # Errors
/// Names the length or the first character that is outside the rule.
pub fn check(id: &str) -> Result<(), IdError> {
    if id.is_empty() || id.len() > MAX_LEN {
        return Err(IdError::Length(id.len()));
    }
    for (at, found) in id.char_indices() {
        let allowed = found.is_ascii_alphanumeric() || (at > 0 && matches!(found, '_' | '.' | '-'));
        if !allowed {
            return Err(IdError::Character { at, found });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_ids_pass() {
        for id in ["a", "0", "redis-1", "k8s.io_x", &"f".repeat(64), &"f".repeat(MAX_LEN)] {
            assert_eq!(check(id), Ok(()), "{id}");
        }
    }

    #[test]
    fn anything_that_could_be_a_path_or_an_option_is_refused() {
        assert_eq!(check(""), Err(IdError::Length(0)));
        assert_eq!(check(&"f".repeat(MAX_LEN + 1)), Err(IdError::Length(MAX_LEN + 1)));
        for (id, at) in
            [(".", 0), ("..", 0), ("-x", 0), ("_x", 0), ("a/b", 1), ("a\0", 1), ("a b", 1), ("aé", 1)]
        {
            assert!(matches!(check(id), Err(IdError::Character { at: found, .. }) if found == at), "{id:?}");
        }
    }
}
