//! A streaming reader of tar archives, for hostile input.
//!
//! Reads what image builders write: V7, ustar, PAX, GNU and old star headers. Names are bytes. The archive is
//! read once, front to back; memory is bounded by the largest extension header (1 MiB), whatever the archive
//! declares. What Go's `archive/tar` accepts, and so containerd and Docker, means the same here:
//!
//! - Hard links, symbolic links, devices, directories and pipes have no data, whatever size they declare.
//! - A file of the V7 type (a zero byte) whose name ends in `/` is a directory; one of the ustar type is not.
//! - An extended header (`x`) replaces one in front of it; GNU long names (`L`, `K`) win over its names.
//! - Global headers (`g`) are checked and otherwise ignored: they do not change entries. What extension
//!   headers in front of one say is dropped with it.
//! - The archive ends with two blocks of zeros, with one and the end of the stream, with the end of the
//!   stream where a header or padding would be. What follows two blocks of zeros is not looked at.
//!
//! Refused beyond that: extension headers that no entry follows, numbers out of range (where Go cuts them to
//! size), and unknown versions of the sparse format. Old GNU sparse files are read, which containerd refuses.

mod error;
mod header;
mod number;
mod pax;
mod sparse;

use std::collections::BTreeMap;
use std::io::{self, BufRead};

use erofs_verity::tree::{DeviceNumber, Timestamp};

use error::Fault;
pub use error::TarError;
use header::{BLOCK, Format, Header};
use pax::Extensions;
pub use sparse::{Fragment, MAX_FRAGMENTS, SparseMap};

const BLOCK_BYTES: u64 = BLOCK as u64;

/// An entry: everything but its data, which [`Reader::read_data`] hands out before the next entry is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Offset of the entry's header in the archive.
    pub offset: u64,
    /// Path as written: possibly absolute, with empty, `.` and `..` components.
    pub path: Vec<u8>,
    /// File type and what belongs to it.
    pub kind: Kind,
    /// Permission bits with set-user-ID, set-group-ID and sticky.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file all of whose bytes are in the archive.
    Regular {
        /// Bytes in the file.
        size: u64,
    },
    /// A regular file with holes; its fragments follow one another in the archive.
    Sparse(SparseMap),
    /// A further name of the file at this path.
    HardLink(Vec<u8>),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// Reads the entries of an archive in their order.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// Bytes consumed.
    position: u64,
    /// Data of the current entry that has not been read.
    stored: u64,
    /// Zeros behind that data up to a whole block.
    padding: u64,
}

/// What the extension headers in front of an entry say.
#[derive(Debug, Default)]
struct Pending {
    extensions: Extensions,
    long_path: Vec<u8>,
    long_link: Vec<u8>,
    /// Offset of the first of them.
    first: Option<u64>,
}

impl<R: BufRead> Reader<R> {
    /// A reader at the first byte of an archive.
    pub fn new(input: R) -> Self {
        Self { input, position: 0, stored: 0, padding: 0 }
    }

    /// The next entry, or `None` at the end of the archive. Data of the entry before it that has not been
    /// read is skipped.
    ///
    /// # Errors
    /// When the archive is malformed or ends too early, or the stream fails. The reader is of no use then.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut pending = Pending::default();
        loop {
            let block = if self.skip_to_header()? { self.header_block()? } else { None };
            let Some((offset, block)) = block else {
                return pending.first.map_or(Ok(None), |offset| {
                    let expected = "an entry behind it";
                    Err(Fault::new("extension header", expected, "the end of the archive").at(offset))
                });
            };
            let header = header::parse(&block).map_err(|fault| fault.at(offset))?;
            match header.type_flag {
                b'x' | b'g' | b'L' | b'K' => {
                    let data = self.extension_data(&header, offset)?;
                    pending.take(&header, &data, offset).map_err(|fault| fault.at(offset))?;
                }
                _ => return self.entry(header, pending, &block, offset).map(Some),
            }
        }
    }

    /// Bytes of the archive that have been read.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes of the current entry's data that have not been read.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.stored
    }

    /// Hands the next `length` bytes of the current entry's data to `sink`, piece by piece, straight from the
    /// stream's buffer. For a sparse file the data are its fragments.
    ///
    /// # Errors
    /// When the archive ends too early, the stream fails, or `sink` does.
    ///
    /// # Panics
    /// If `length` is more than [`Self::remaining`]: the caller knows the entry.
    pub fn read_data<E: From<TarError>>(
        &mut self,
        length: u64,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        assert!(length <= self.stored, "{length} bytes asked for, {} left in the entry", self.stored);
        let mut left = length;
        while left > 0 {
            let piece = self.fill(left)?;
            if piece.is_empty() {
                return Err(self.truncated("data", self.stored).into());
            }
            let taken = piece.len();
            let handed = sink(piece);
            self.input.consume(taken);
            self.position += taken as u64;
            self.stored -= taken as u64;
            left -= taken as u64;
            handed?;
        }
        Ok(())
    }

    /// Takes the stream back, at the byte behind the last one that was read.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Up to `most` bytes of the stream's buffer; none at the end of the stream.
    fn fill(&mut self, most: u64) -> Result<&[u8], TarError> {
        let offset = self.position;
        loop {
            match self.input.fill_buf() {
                // Asked again below: the borrow of this answer cannot leave the loop.
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Input { offset, source }),
            }
        }
        let piece = self.input.fill_buf().map_err(|source| TarError::Input { offset, source })?;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Ok(&piece[..piece.len().min(most)])
    }

    /// Consumes up to `length` bytes; how many it were.
    fn skip(&mut self, length: u64) -> Result<u64, TarError> {
        let mut left = length;
        while left > 0 {
            let taken = self.fill(left)?.len();
            if taken == 0 {
                break;
            }
            self.input.consume(taken);
            self.position += taken as u64;
            left -= taken as u64;
        }
        Ok(length - left)
    }

    /// Fills `bytes` from the stream; how many it were before the stream ended.
    fn read_exactly(&mut self, bytes: &mut [u8]) -> Result<usize, TarError> {
        let mut filled = 0;
        while filled < bytes.len() {
            let piece = self.fill((bytes.len() - filled) as u64)?;
            let taken = piece.len();
            if taken == 0 {
                break;
            }
            bytes[filled..filled + taken].copy_from_slice(piece);
            self.input.consume(taken);
            self.position += taken as u64;
            filled += taken;
        }
        Ok(filled)
    }

    fn truncated(&self, within: &'static str, missing: u64) -> TarError {
        TarError::Truncated { offset: self.position, within, missing }
    }

    /// Moves behind the current entry; false if the stream ends in its padding, which ends the archive.
    fn skip_to_header(&mut self) -> Result<bool, TarError> {
        let stored = std::mem::take(&mut self.stored);
        let padding = std::mem::take(&mut self.padding);
        let skipped = self.skip(stored)?;
        if skipped < stored {
            return Err(self.truncated("data", stored - skipped));
        }
        Ok(self.skip(padding)? == padding)
    }

    /// The next header and its offset; `None` at the end of the archive.
    fn header_block(&mut self) -> Result<Option<(u64, [u8; BLOCK])>, TarError> {
        let offset = self.position;
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block != [0; BLOCK] {
            return Ok(Some((offset, block)));
        }
        match self.block()? {
            None => Ok(None),
            Some(second) if second == [0; BLOCK] => Ok(None),
            Some(_) => {
                let expected = "two blocks of zeros or the end of the stream";
                Err(Fault::new("end of the archive", expected, "one block of zeros and more").at(offset))
            }
        }
    }

    /// A whole block, or `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        match self.read_exactly(&mut block)? {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            part => Err(self.truncated("a header", (BLOCK - part) as u64)),
        }
    }

    /// Data of `size` bytes begin here.
    fn begin_data(&mut self, size: u64) {
        self.stored = size;
        self.padding = size.wrapping_neg() % BLOCK_BYTES;
    }

    fn extension_data(&mut self, header: &Header, offset: u64) -> Result<Vec<u8>, TarError> {
        let size = u64::try_from(header.size).ok().filter(|&size| size <= pax::MAX_BYTES);
        let size = size.ok_or_else(|| {
            let expected = "at most 1048576 bytes in an extension header";
            Fault::new("size", expected, header.size).at(offset)
        })?;
        self.begin_data(size);
        let mut data = Vec::new();
        self.read_data(size, |piece| {
            data.extend_from_slice(piece);
            Ok::<_, TarError>(())
        })?;
        Ok(data)
    }

    fn entry(
        &mut self,
        header: Header,
        pending: Pending,
        block: &[u8; BLOCK],
        offset: u64,
    ) -> Result<Entry, TarError> {
        let at = |fault: Fault| fault.at(offset);
        let Pending { extensions, long_path, long_link, .. } = pending;
        let path = last_of([&header.path, &extensions.path, &long_path, &extensions.sparse.name]);
        let link = last_of([&header.link, &extensions.link, &long_link]);
        let is_sparse = extensions.sparse.version().map_err(at)?;
        let kind = match header.type_flag {
            // Legacy archives mark directories by a slash.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' => {
                let size = extensions.size.unwrap_or(header.size);
                self.begin_data(size_from(size).map_err(at)?);
                self.regular(is_sparse, extensions.sparse, offset)?
            }
            b'S' => {
                self.begin_data(size_from(extensions.size.unwrap_or(header.size)).map_err(at)?);
                self.old_gnu_sparse(&header, block, offset)?
            }
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' => Kind::CharDevice(device(&header).map_err(at)?),
            b'4' => Kind::BlockDevice(device(&header).map_err(at)?),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let expected = "a file, link, device, directory or pipe ('0' to '6', 'S')";
                return Err(at(Fault::bytes("type flag", expected, &[other])));
            }
        };
        if is_sparse != SparseVersion::None && !matches!(kind, Kind::Sparse(_)) {
            return Err(at(Fault::bytes(
                "type flag",
                "a regular file with its sparse map",
                &[header.type_flag],
            )));
        }
        Ok(Entry {
            offset,
            path,
            kind,
            permissions: permissions(header.mode).map_err(at)?,
            uid: owner("uid", extensions.uid.unwrap_or(header.uid)).map_err(at)?,
            gid: owner("gid", extensions.gid.unwrap_or(header.gid)).map_err(at)?,
            mtime: extensions.mtime.unwrap_or(Timestamp { seconds: header.mtime, nanoseconds: 0 }),
            xattrs: extensions.xattrs,
        })
    }

    /// A regular file whose data begin here, sparse if records say so.
    fn regular(
        &mut self,
        version: SparseVersion,
        records: pax::SparseRecords,
        offset: u64,
    ) -> Result<Kind, TarError> {
        let at = |fault: Fault| fault.at(offset);
        if version == SparseVersion::None {
            return Ok(Kind::Regular { size: self.stored });
        }
        let missing = || Fault::new("GNU.sparse.realsize", "the size of a sparse file", "none").at(offset);
        let size = records.size.or(records.real_size).ok_or_else(missing)?;
        let size = size_from(size).map_err(at)?;
        let numbers = match version {
            SparseVersion::InData => self.sparse_lines(offset)?,
            _ => records.listed().map_err(at)?,
        };
        numbers.finish(size, self.stored).map(Kind::Sparse).map_err(at)
    }

    /// The map in front of the data of a sparse file (PAX 1.0), which fills whole blocks.
    fn sparse_lines(&mut self, offset: u64) -> Result<sparse::Numbers, TarError> {
        let mut lines = sparse::LineParser::default();
        loop {
            let mut block = [0; BLOCK];
            if self.stored < BLOCK_BYTES {
                let found = format!("{} bytes left of the entry", self.stored);
                return Err(Fault::new("sparse map", "a whole block", found).at(offset));
            }
            if self.read_exactly(&mut block)? < BLOCK {
                return Err(self.truncated("a sparse map", BLOCK_BYTES));
            }
            self.stored -= BLOCK_BYTES;
            if lines.push_block(&block).map_err(|fault| fault.at(offset))? {
                return Ok(lines.finish());
            }
        }
    }

    /// A sparse file of type `S`, whose map continues in blocks between header and data.
    fn old_gnu_sparse(
        &mut self,
        header: &Header,
        block: &[u8; BLOCK],
        offset: u64,
    ) -> Result<Kind, TarError> {
        const MAIN_AREA: std::ops::Range<usize> = 386..482;
        const MAIN_CONTINUED: usize = 482;
        const REAL_SIZE: std::ops::Range<usize> = 483..495;
        const AREA: std::ops::Range<usize> = 0..504;
        const CONTINUED: usize = 504;
        let at = |fault: Fault| fault.at(offset);
        if header.format != Format::Gnu {
            // Other formats lay this type out in other ways.
            return Err(at(Fault::new("type flag", "a GNU header for a file of type 'S'", "another header")));
        }
        let real_size = number::field(&block[REAL_SIZE]);
        let real_size = real_size
            .ok_or_else(|| at(Fault::bytes("real size", "an octal or base-256 number", &block[REAL_SIZE])))?;
        let mut numbers = sparse::Numbers::default();
        numbers.push_old_gnu(&block[MAIN_AREA]).map_err(at)?;
        let mut continued = block[MAIN_CONTINUED] != 0;
        while continued {
            let block = self.block()?.ok_or_else(|| self.truncated("a sparse map", BLOCK_BYTES))?;
            let before = numbers.len();
            numbers.push_old_gnu(&block[AREA]).map_err(at)?;
            continued = block[CONTINUED] != 0;
            if continued && numbers.len() == before {
                return Err(at(Fault::new("sparse map", "fragments in a block of the map", "none")));
            }
        }
        let size = size_from(real_size).map_err(at)?;
        numbers.finish(size, self.stored).map(Kind::Sparse).map_err(at)
    }
}

impl Pending {
    fn take(&mut self, header: &Header, data: &[u8], offset: u64) -> Result<(), Fault> {
        self.first.get_or_insert(offset);
        match header.type_flag {
            b'x' => self.extensions = pax::parse(data)?,
            b'L' => self.long_path = header::string(data).to_vec(),
            b'K' => self.long_link = header::string(data).to_vec(),
            _ => {
                pax::parse(data)?;
                *self = Self::default();
            }
        }
        Ok(())
    }
}

/// Where the map of a sparse file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SparseVersion {
    /// Not a sparse file.
    None,
    /// In records: versions 0.0 and 0.1.
    Listed,
    /// In front of the data: version 1.0.
    InData,
}

impl pax::SparseRecords {
    fn version(&self) -> Result<SparseVersion, Fault> {
        match (&self.major[..], &self.minor[..]) {
            (b"1", b"0") => Ok(SparseVersion::InData),
            (b"0", b"0" | b"1") => Ok(SparseVersion::Listed),
            // Early versions do not say which they are.
            (b"", b"") if !self.map.is_empty() || self.numbers.len() > 0 => Ok(SparseVersion::Listed),
            (b"", b"") => Ok(SparseVersion::None),
            (major, minor) => {
                let found = [major, b".", minor].concat();
                Err(Fault::bytes("version of the sparse format", "0.0, 0.1 or 1.0", &found))
            }
        }
    }

    fn listed(self) -> Result<sparse::Numbers, Fault> {
        let count = sparse::count(number::decimal(&self.count), &self.count)?;
        let mut numbers = self.numbers;
        if numbers.len() == 0 {
            numbers.push_list(&self.map)?;
        }
        if numbers.len() != 2 * count {
            let found = format!("{} numbers for {count} fragments", numbers.len());
            return Err(Fault::new("sparse map", "two numbers for each fragment", found));
        }
        Ok(numbers)
    }
}

/// The last of these that says anything.
fn last_of<const N: usize>(texts: [&Vec<u8>; N]) -> Vec<u8> {
    texts.into_iter().rev().find(|text| !text.is_empty()).cloned().unwrap_or_default()
}

fn size_from(size: i64) -> Result<u64, Fault> {
    u64::try_from(size).map_err(|_| Fault::new("size", "a number from 0 to 2^63 - 1", size))
}

/// Old archives have the file type in the mode as well; the type flag counts.
fn permissions(mode: i64) -> Result<u16, Fault> {
    let mode = u64::try_from(mode).map_err(|_| Fault::new("mode", "a positive number", mode))?;
    // Lossless: 12 bits are left.
    Ok(u16::try_from(mode & 0o7777).unwrap_or_default())
}

/// The all-ones number means "nobody" to Linux and can own nothing.
fn owner(field: &'static str, id: i64) -> Result<u32, Fault> {
    let owner = u32::try_from(id).ok().filter(|&id| id != u32::MAX);
    owner.ok_or_else(|| Fault::new(field, "a number from 0 to 4294967294", id))
}

fn device(header: &Header) -> Result<DeviceNumber, Fault> {
    let number = |field, number: i64| {
        u32::try_from(number).map_err(|_| Fault::new(field, "a number from 0 to 4294967295", number))
    };
    Ok(DeviceNumber {
        major: number("device major number", header.device_major)?,
        minor: number("device minor number", header.device_minor)?,
    })
}
