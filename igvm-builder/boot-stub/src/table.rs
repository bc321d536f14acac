//! Fixed-size byte tables filled field by field, every write bounded.

/// A table in a caller's buffer.
#[derive(Debug)]
pub struct Table<'a>(pub &'a mut [u8]);

impl Table<'_> {
    /// Writes `bytes` at `offset`; a table that is too short keeps what it has, which the caller's length
    /// check excludes.
    pub fn put(&mut self, offset: usize, bytes: &[u8]) {
        if let Some(field) = offset.checked_add(bytes.len()).and_then(|end| self.0.get_mut(offset..end)) {
            field.copy_from_slice(bytes);
        }
    }
}
