//! PAX extended headers (POSIX.1-2001): records `"<length> <key>=<value>\n"` in front of the entry that they
//! are about.
//!
//! What is understood is what containerd understands (through Go's `archive/tar`): `path`, `linkpath`,
//! `size`, `uid`, `gid`, `mtime`, `SCHILY.xattr.*` and `GNU.sparse.*`. Other keys carry nothing that a layer
//! has: names of users and groups, access and change times, comments, and `LIBARCHIVE.xattr.*`, which
//! libarchive writes beside `SCHILY.xattr.*` with the same content. They are skipped.

use std::collections::BTreeMap;

use erofs_verity::tree::Timestamp;

use super::error::Fault;
use super::number;
use super::sparse::Numbers;

/// Most bytes in an extension header, the limit of Go's reader and of libarchive.
pub(super) const MAX_BYTES: u64 = 1 << 20;

const XATTR: &[u8] = b"SCHILY.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

/// What an extended header says about the next entry. Text is empty and numbers are absent where it says
/// nothing; an empty value says nothing.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: Option<i64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) sparse: SparseRecords,
}

/// The records of GNU tar's three ways to write a sparse map.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    pub(super) major: Vec<u8>,
    pub(super) minor: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) size: Option<i64>,
    pub(super) real_size: Option<i64>,
    pub(super) count: Vec<u8>,
    pub(super) map: Vec<u8>,
    /// Numbers of format 0.0, which come one by one.
    pub(super) numbers: Numbers,
}

/// Reads the data of an extended header.
pub(super) fn parse(mut data: &[u8]) -> Result<Extensions, Fault> {
    let mut extensions = Extensions::default();
    while !data.is_empty() {
        let record = Record::split_off(&mut data)?;
        extensions.take(record.key, record.value)?;
    }
    Ok(extensions)
}

/// One record of an extended header.
struct Record<'d> {
    key: &'d [u8],
    value: &'d [u8],
}

impl<'d> Record<'d> {
    /// Takes the first record from `data`.
    fn split_off(data: &mut &'d [u8]) -> Result<Self, Fault> {
        let whole = *data;
        let expected = "records of the form \"<length> <key>=<value>\\n\"";
        let fault = || Fault::bytes("extended header", expected, whole);
        let space = whole.iter().position(|&byte| byte == b' ').ok_or_else(fault)?;
        let length = number::decimal(&whole[..space]).and_then(|length| usize::try_from(length).ok());
        let length =
            length.filter(|&length| length > space + 1 && length <= whole.len()).ok_or_else(fault)?;
        let (record, rest) = whole.split_at(length);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(fault)?;
        let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(fault)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return Err(fault());
        }
        *data = rest;
        Ok(Self { key, value })
    }
}

impl Extensions {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        match key {
            b"path" => self.path = text("path", value)?,
            b"linkpath" => self.link = text("linkpath", value)?,
            b"size" => self.size = integer("size", value)?,
            b"uid" => self.uid = integer("uid", value)?,
            b"gid" => self.gid = integer("gid", value)?,
            b"mtime" => self.mtime = time(value)?,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                } else if let Some(key) = key.strip_prefix(SPARSE) {
                    self.sparse.take(key, value)?;
                }
            }
        }
        Ok(())
    }
}

impl SparseRecords {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        match key {
            b"major" => self.major = value.to_vec(),
            b"minor" => self.minor = value.to_vec(),
            b"name" => self.name = text("GNU.sparse.name", value)?,
            b"size" => self.size = integer("GNU.sparse.size", value)?,
            b"realsize" => self.real_size = integer("GNU.sparse.realsize", value)?,
            b"numblocks" => self.count = value.to_vec(),
            b"map" => self.map = value.to_vec(),
            b"offset" | b"numbytes" => {
                let is_offset = self.numbers.len().is_multiple_of(2);
                if is_offset != (key == b"offset") {
                    let expected = "GNU.sparse.offset and GNU.sparse.numbytes by turns";
                    return Err(Fault::bytes("sparse map", expected, key));
                }
                self.numbers.push(number::decimal(value), value)?;
            }
            _ => return Err(Fault::bytes("GNU.sparse record", "a known key", key)),
        }
        Ok(())
    }
}

fn text(field: &'static str, value: &[u8]) -> Result<Vec<u8>, Fault> {
    if value.contains(&0) {
        return Err(Fault::bytes(field, "text without zero bytes", value));
    }
    Ok(value.to_vec())
}

fn integer(field: &'static str, value: &[u8]) -> Result<Option<i64>, Fault> {
    if value.is_empty() {
        return Ok(None);
    }
    let number = number::decimal(value);
    number.map(Some).ok_or_else(|| Fault::bytes(field, "a decimal number of 64 bits", value))
}

/// `<seconds>` or `<seconds>.<fraction>`; digits beyond nanoseconds are cut off.
fn time(value: &[u8]) -> Result<Option<Timestamp>, Fault> {
    if value.is_empty() {
        return Ok(None);
    }
    let fault = || Fault::bytes("mtime", "decimal seconds with an optional fraction", value);
    let mut parts = value.splitn(2, |&byte| byte == b'.');
    let whole = parts.next().unwrap_or_default();
    let fraction = parts.next().unwrap_or_default();
    let seconds = number::decimal(whole).ok_or_else(fault)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(fault());
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    if whole.starts_with(b"-") && nanoseconds > 0 {
        // -1.25 is a quarter of a second before -1: three quarters after -2.
        let seconds = seconds.checked_sub(1).ok_or_else(fault)?;
        return Ok(Some(Timestamp { seconds, nanoseconds: 1_000_000_000 - nanoseconds }));
    }
    Ok(Some(Timestamp { seconds, nanoseconds }))
}
