//! Extended attributes as erofs stores them: inline, behind the inode.
//!
//! A 12-byte header is followed by entries, each with a name index that stands for a prefix, the rest of the
//! name, and the value, padded to 4 bytes. The inode counts the whole in units of 4 bytes.

use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use super::format::{XATTR_HEADER_SIZE, XattrEntry};
use crate::tree::Xattrs;

/// Entries and their padding are multiples of this.
const ALIGN: usize = 4;
/// Largest body that the inode's 16-bit count can name.
const MAX_BODY: usize = XATTR_HEADER_SIZE + ALIGN * (u16::MAX as usize - 1);

/// Prefixes that have a name index. The two ACL names are prefixes with nothing behind them.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Why an extended attribute is refused.
#[derive(Debug, thiserror::Error)]
pub enum XattrError {
    /// No index stands for this name's prefix.
    #[error(
        "extended attribute {0:?}: expected user.*, trusted.*, security.*, system.posix_acl_access or system.posix_acl_default"
    )]
    Name(String),
    /// The name behind its prefix does not fit 8 bits.
    #[error(
        "extended attribute {name:?}: expected at most 255 bytes in its name behind the prefix, found {found}"
    )]
    NameLength {
        /// Full name.
        name: String,
        /// Bytes behind the prefix.
        found: usize,
    },
    /// The value does not fit 16 bits.
    #[error("extended attribute {name:?}: expected a value of at most 65535 bytes, found {found}")]
    Value {
        /// Full name.
        name: String,
        /// Bytes in the value.
        found: usize,
    },
    /// All attributes of the node together are too large.
    #[error("extended attributes: expected at most {MAX_BODY} bytes in all, found {0}")]
    Total(usize),
}

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|&(prefix, index)| {
        let rest = name.strip_prefix(prefix)?;
        let is_whole_name = !prefix.ends_with(b".");
        (rest.is_empty() == is_whole_name && !rest.contains(&0)).then_some((index, rest))
    })
}

/// An attribute as an entry and what follows it: the name behind its prefix.
fn entry<'n>(name: &'n [u8], value: &[u8]) -> Result<(XattrEntry, &'n [u8]), XattrError> {
    let shown = || String::from_utf8_lossy(name).into_owned();
    let (name_index, rest) = split(name).ok_or_else(|| XattrError::Name(shown()))?;
    let name_len =
        u8::try_from(rest.len()).map_err(|_| XattrError::NameLength { name: shown(), found: rest.len() })?;
    let value_size =
        u16::try_from(value.len()).map_err(|_| XattrError::Value { name: shown(), found: value.len() })?;
    Ok((XattrEntry { name_len, name_index, value_size: U16::new(value_size) }, rest))
}

/// Checks that every attribute, and all of them together, can be represented.
pub(crate) fn check(xattrs: &Xattrs) -> Result<(), XattrError> {
    for (name, value) in xattrs {
        entry(name, value)?;
    }
    let total = body_size(xattrs);
    if total > MAX_BODY { Err(XattrError::Total(total)) } else { Ok(()) }
}

/// Bytes that the attributes take behind the inode; 0 when there are none.
pub(crate) fn body_size(xattrs: &Xattrs) -> usize {
    if xattrs.is_empty() {
        return 0;
    }
    let entries = xattrs.iter().map(|(name, value)| {
        let rest = split(name).map_or(name.len(), |(_, rest)| rest.len());
        (size_of::<XattrEntry>() + rest + value.len()).next_multiple_of(ALIGN)
    });
    XATTR_HEADER_SIZE + entries.sum::<usize>()
}

/// The inode's count for a body of `size` bytes that has passed [`check`].
pub(crate) fn inode_count(size: usize) -> u16 {
    match size.checked_sub(XATTR_HEADER_SIZE) {
        Some(entries) => u16::try_from(entries / ALIGN + 1).unwrap_or(u16::MAX),
        None => 0,
    }
}

/// The body of the attributes, in the order of their names.
pub(crate) fn encode(xattrs: &Xattrs) -> Result<Vec<u8>, XattrError> {
    let size = body_size(xattrs);
    let mut body = Vec::with_capacity(size);
    if size == 0 {
        return Ok(body);
    }
    // No shared attributes and no name filter: the header is all zero.
    body.resize(XATTR_HEADER_SIZE, 0);
    for (name, value) in xattrs {
        let (entry, rest) = entry(name, value)?;
        body.extend_from_slice(entry.as_bytes());
        body.extend_from_slice(rest);
        body.extend_from_slice(value);
        body.resize(body.len().next_multiple_of(ALIGN), 0);
    }
    Ok(body)
}

/// The attributes of a body that [`encode`] has made.
pub(crate) fn decode(body: &[u8]) -> Xattrs {
    let mut xattrs = Xattrs::new();
    let mut rest = body.get(XATTR_HEADER_SIZE..).unwrap_or_default();
    while let [name_len, name_index, size_low, size_high, bytes @ ..] = rest {
        let name_len = usize::from(*name_len);
        let end = name_len + usize::from(u16::from_le_bytes([*size_low, *size_high]));
        let prefix = PREFIXES.iter().find(|(_, index)| index == name_index);
        let (Some((prefix, _)), Some(bytes)) = (prefix, bytes.get(..end)) else { break };
        let (name, value) = bytes.split_at(name_len);
        xattrs.insert([prefix, name].concat(), value.to_vec());
        let taken = (size_of::<XattrEntry>() + end).next_multiple_of(ALIGN);
        rest = rest.get(taken..).unwrap_or_default();
    }
    xattrs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattrs(pairs: &[(&[u8], usize)]) -> Xattrs {
        pairs.iter().map(|&(name, len)| (name.to_vec(), vec![7; len])).collect()
    }

    #[test]
    fn sizes_and_bytes_agree() {
        let set = xattrs(&[(b"user.a", 3), (b"system.posix_acl_access", 28), (b"trusted.overlay.opaque", 1)]);
        check(&set).unwrap();
        let body = encode(&set).unwrap();
        assert_eq!(body.len(), body_size(&set));
        assert_eq!(decode(&body), set);
        assert_eq!(body.len(), 12 + 32 + 20 + 8);
        assert_eq!(usize::from(inode_count(body.len())), 1 + (body.len() - 12) / 4);
        assert_eq!(inode_count(0), 0);
    }

    #[test]
    fn what_erofs_cannot_hold_is_refused() {
        for (name, len, message) in [
            (&b"system.nfs4_acl"[..], 1, "expected user.*"),
            (b"user.", 1, "expected user.*"),
            (b"system.posix_acl_accessx", 1, "expected user.*"),
            (b"user.big", 65536, "at most 65535 bytes, found 65536"),
        ] {
            let error = check(&xattrs(&[(name, len)])).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        let many: Xattrs =
            (0..5u8).map(|n| (vec![b'u', b's', b'e', b'r', b'.', n + 65], vec![0; 65000])).collect();
        assert!(matches!(check(&many), Err(XattrError::Total(_))));
        let long = [b"user.".as_slice(), &[b'x'; 256]].concat();
        assert!(matches!(check(&xattrs(&[(&long, 1)])), Err(XattrError::NameLength { found: 256, .. })));
    }
}
