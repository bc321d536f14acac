//! The certificate table of extended guest requests (GHCB specification, publication 56421, SNP Extended Guest
//! Request).
//!
//! The host provides it, unprotected: it is a convenience that saves the verifier a download, and proves nothing
//! before its certificates are verified. Entries of 24 bytes (GUID, offset, length) end with one of zeros; the
//! certificates, DER, follow.

use std::{fmt, ops::Range};

use thiserror::Error;

/// Most bytes of a table: what the Linux guest driver takes.
pub const TABLE_MAX: usize = 0x4000;

/// Most entries of a table.
pub const ENTRIES_MAX: usize = 16;

const ENTRY_BYTES: usize = 24;

/// Why bytes are not a certificate table, or certificates do not fit one.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// Longer than any table is.
    #[error("certificate table: expected at most {TABLE_MAX} bytes, found {0}")]
    Size(usize),
    /// The terminating entry is missing.
    #[error("certificate table: expected an entry of zeros after at most {ENTRIES_MAX} entries, found none")]
    Unterminated,
    /// An entry's data lies outside the table, or inside its header.
    #[error(
        "certificate table, entry {kind}: expected data within {header}..{size}, found {offset} + {length}"
    )]
    Bounds {
        /// The entry.
        kind: Kind,
        /// End of the header.
        header: usize,
        /// Bytes of the table.
        size: usize,
        /// The entry's offset.
        offset: u32,
        /// The entry's length.
        length: u32,
    },
    /// Two entries share bytes.
    #[error("certificate table, entry {0}: expected bytes of its own, found them in another entry too")]
    Overlap(Kind),
    /// Two entries of one kind.
    #[error("certificate table: expected one entry {0}, found two")]
    Duplicate(Kind),
}

/// What an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The chip's endorsement key for a TCB version.
    Vcek,
    /// The endorsement key that AMD lends to a provider.
    Vlek,
    /// AMD's signing key, which certifies VCEKs; the ASVK, which certifies VLEKs, travels under the same GUID.
    Ask,
    /// AMD's root key of the product line.
    Ark,
    /// Revocation list.
    Crl,
    /// Something else, by its GUID's bytes.
    Other([u8; 16]),
}

impl Kind {
    const KNOWN: [(Self, [u8; 16]); 5] = [
        (Self::Vcek, guid(0x63da758d_e664_4564_adc5_f4b93be8accd)),
        (Self::Vlek, guid(0xa8074bc2_a25a_483e_aae6_39c045a0b8a1)),
        (Self::Ask, guid(0x4ab7b379_bbac_4fe4_a02f_05aef327c782)),
        (Self::Ark, guid(0xc0b406a4_a803_4952_9743_3fb6014cd0ae)),
        (Self::Crl, guid(0x92f81bc3_5811_4d3d_97ff_d19f88dc67ea)),
    ];

    fn from_guid(bytes: [u8; 16]) -> Self {
        Self::KNOWN.iter().find(|(_, known)| *known == bytes).map_or(Self::Other(bytes), |(kind, _)| *kind)
    }

    fn guid(self) -> [u8; 16] {
        if let Self::Other(bytes) = self {
            return bytes;
        }
        Self::KNOWN.iter().find(|(kind, _)| *kind == self).map_or([0; 16], |(_, bytes)| *bytes)
    }
}

/// GUIDs stand in the order in which they are written, most significant byte first.
const fn guid(number: u128) -> [u8; 16] {
    number.to_be_bytes()
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcek => f.write_str("VCEK"),
            Self::Vlek => f.write_str("VLEK"),
            Self::Ask => f.write_str("ASK"),
            Self::Ark => f.write_str("ARK"),
            Self::Crl => f.write_str("CRL"),
            Self::Other(guid) => write!(f, "{:032x}", u128::from_be_bytes(*guid)),
        }
    }
}

/// A parsed table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table<'a> {
    entries: Vec<(Kind, &'a [u8])>,
}

impl<'a> Table<'a> {
    /// Takes `bytes` as a table. No bytes at all are a table without entries: a host need not provide certificates.
    ///
    /// # Errors
    /// The table is too long, not terminated, names a kind twice, or its entries overlap or reach outside.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        if bytes.len() > TABLE_MAX {
            return Err(Error::Size(bytes.len()));
        }
        let (count, header) = header(bytes)?;
        let mut entries: Vec<(Kind, &[u8])> = Vec::with_capacity(count);
        let mut taken: Vec<Range<usize>> = Vec::with_capacity(count);
        for (guid, offset, length) in raw_entries(bytes).take(count) {
            let kind = Kind::from_guid(guid);
            let (data, range) = slice(bytes, header, offset, length).ok_or(Error::Bounds {
                kind,
                header,
                size: bytes.len(),
                offset,
                length,
            })?;
            if entries.iter().any(|(other, _)| *other == kind) {
                return Err(Error::Duplicate(kind));
            }
            if taken.iter().any(|other| other.start < range.end && range.start < other.end) {
                return Err(Error::Overlap(kind));
            }
            entries.push((kind, data));
            taken.push(range);
        }
        Ok(Self { entries })
    }

    /// The entry of a kind.
    #[must_use]
    pub fn find(&self, kind: Kind) -> Option<&'a [u8]> {
        self.entries.iter().find(|(other, _)| *other == kind).map(|(_, data)| *data)
    }

    /// All entries in their order.
    #[must_use]
    pub fn entries(&self) -> &[(Kind, &'a [u8])] {
        &self.entries
    }
}

/// The bytes of a table with these entries.
///
/// # Errors
/// The table would be one that [`Table::parse`] refuses.
pub fn encode(entries: &[(Kind, &[u8])]) -> Result<Vec<u8>, Error> {
    let header = (entries.len() + 1) * ENTRY_BYTES;
    let size = entries.iter().fold(header, |size, (_, data)| size.saturating_add(data.len()));
    if size > TABLE_MAX {
        return Err(Error::Size(size));
    }
    if entries.len() > ENTRIES_MAX {
        return Err(Error::Unterminated);
    }
    let mut bytes = Vec::with_capacity(size);
    let mut offset = header;
    for (kind, data) in entries {
        bytes.extend(kind.guid());
        for number in [offset, data.len()] {
            bytes.extend(u32::try_from(number).map_err(|_| Error::Size(size))?.to_le_bytes());
        }
        offset += data.len();
    }
    bytes.resize(header, 0);
    for (_, data) in entries {
        bytes.extend_from_slice(data);
    }
    Table::parse(&bytes)?;
    Ok(bytes)
}

/// Number of entries before the terminating one, and the header's size with it.
fn header(bytes: &[u8]) -> Result<(usize, usize), Error> {
    let count = raw_entries(bytes)
        .take(ENTRIES_MAX + 1)
        .position(|entry| entry == ([0; 16], 0, 0))
        .ok_or(Error::Unterminated)?;
    Ok((count, (count + 1) * ENTRY_BYTES))
}

fn raw_entries(bytes: &[u8]) -> impl Iterator<Item = ([u8; 16], u32, u32)> {
    bytes.as_chunks::<ENTRY_BYTES>().0.iter().map(|entry| {
        let (guid, numbers) = entry.split_at(16);
        let number =
            |at: usize| numbers.iter().skip(at).take(4).rev().fold(0, |n, byte| n << 8 | u32::from(*byte));
        let mut guid_bytes = [0; 16];
        guid_bytes.copy_from_slice(guid);
        (guid_bytes, number(0), number(4))
    })
}

fn slice(bytes: &[u8], header: usize, offset: u32, length: u32) -> Option<(&[u8], Range<usize>)> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    if start < header {
        return None;
    }
    Some((bytes.get(start..end)?, start..end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table() -> Vec<u8> {
        encode(&[(Kind::Vcek, b"vcek"), (Kind::Ask, b"signer"), (Kind::Ark, b"root")]).unwrap()
    }

    #[test]
    fn a_table_comes_back() {
        let bytes = table();
        let table = Table::parse(&bytes).unwrap();
        assert_eq!(table.find(Kind::Ask), Some(&b"signer"[..]));
        assert_eq!(table.find(Kind::Vlek), None);
        assert_eq!(table.entries().len(), 3);
        assert_eq!(&bytes[..4], &[0x63, 0xda, 0x75, 0x8d]);
        assert_eq!(&bytes[16..24], &[96, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(Table::parse(&[]).unwrap().entries(), &[]);
        assert_eq!(Table::parse(&encode(&[]).unwrap()).unwrap().entries(), &[]);
    }

    #[test]
    fn entries_stay_inside_the_table_and_apart() {
        let patched = |at: usize, value: u32| {
            let mut bytes = table();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            Table::parse(&bytes).map(|_| ()).unwrap_err()
        };
        assert!(matches!(patched(16, 95), Error::Bounds { kind: Kind::Vcek, header: 96, offset: 95, .. }));
        assert!(matches!(patched(20, 15), Error::Bounds { kind: Kind::Vcek, length: 15, .. }));
        assert!(matches!(patched(20, u32::MAX), Error::Bounds { .. }));
        assert!(matches!(patched(16, u32::MAX), Error::Bounds { .. }));
        assert_eq!(patched(24 + 16, 96), Error::Overlap(Kind::Ask));
    }

    #[test]
    fn malformed_headers_are_refused() {
        assert_eq!(Table::parse(&[1; 23]).unwrap_err(), Error::Unterminated);
        assert_eq!(Table::parse(&[1; 24 * 40]).unwrap_err(), Error::Unterminated);
        assert_eq!(Table::parse(&vec![0; TABLE_MAX + 1]).unwrap_err(), Error::Size(TABLE_MAX + 1));
        let twice = encode(&[(Kind::Ark, b"a"), (Kind::Ark, b"b")]).unwrap_err();
        assert_eq!(twice, Error::Duplicate(Kind::Ark));
        assert_eq!(encode(&[(Kind::Ark, &[0; TABLE_MAX])]).unwrap_err(), Error::Size(TABLE_MAX + 48));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..300)) {
            let _ = Table::parse(&bytes);
        }

        #[test]
        fn flipped_tables_never_panic(at in 0usize..96, byte in any::<u8>()) {
            let mut bytes = table();
            bytes[at] = byte;
            if let Ok(parsed) = Table::parse(&bytes) {
                prop_assert!(parsed.entries().iter().all(|(_, data)| data.len() <= bytes.len()));
            }
        }
    }
}
