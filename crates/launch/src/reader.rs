//! Reads the structure of an IGVM file, version 1 (`igvm_defs`: "Independent Guest Virtual Machine file
//! format").
//!
//! Files are written with the `igvm` crate. They are read here, because a file comes from somebody else and
//! that crate's reader calculates with its numbers unchecked. Nothing is copied: what a header refers to is
//! a part of the file. What is not understood is refused, never skipped.

use std::ops::Range;

use igvm_defs::{
    IGVM_FIXED_HEADER, IGVM_FORMAT_VERSION_1, IGVM_MAGIC_VALUE, IGVM_VHS_GUEST_POLICY, IGVM_VHS_PAGE_DATA,
    IGVM_VHS_PARAMETER, IGVM_VHS_PARAMETER_AREA, IGVM_VHS_PARAMETER_INSERT, IGVM_VHS_REQUIRED_MEMORY,
    IGVM_VHS_SNP_ID_BLOCK, IGVM_VHS_SUPPORTED_PLATFORM, IGVM_VHS_VARIABLE_HEADER, IGVM_VHS_VP_CONTEXT,
    IgvmVariableHeaderType,
};
use zerocopy::{FromBytes, Immutable, IntoBytes as _, KnownLayout};

/// Bytes of a page, and of every processor context in the file.
const PAGE_BYTES: usize = 4096;
/// Headers begin at multiples of this.
const ALIGNMENT: usize = 8;
/// First initialization and first directive header type.
const INITIALIZATION: u32 = 0x100;
const DIRECTIVE: u32 = 0x300;

/// One variable header. Ranges are of bytes of the file; an empty one stands for zeros.
#[derive(Debug, Clone)]
pub enum Header {
    /// A platform that the file starts on.
    Platform(IGVM_VHS_SUPPORTED_PLATFORM),
    /// An SEV-SNP guest policy.
    GuestPolicy(IGVM_VHS_GUEST_POLICY),
    /// A page.
    Page(IGVM_VHS_PAGE_DATA, Range<usize>),
    /// Pages that the loader fills.
    ParameterArea(IGVM_VHS_PARAMETER_AREA, Range<usize>),
    /// Something that the loader writes into an area; the header's type says what.
    Parameter(IgvmVariableHeaderType, IGVM_VHS_PARAMETER),
    /// Where an area goes.
    ParameterInsert(IGVM_VHS_PARAMETER_INSERT),
    /// A processor's state.
    Context(IGVM_VHS_VP_CONTEXT, Range<usize>),
    /// Memory that must be there.
    RequiredMemory(IGVM_VHS_REQUIRED_MEMORY),
    /// An SEV-SNP ID block.
    IdBlock(Box<IGVM_VHS_SNP_ID_BLOCK>),
}

impl Header {
    /// The platforms that the header is for; `None`: all of them.
    #[must_use]
    pub fn compatibility_mask(&self) -> Option<u32> {
        match self {
            Self::Platform(header) => Some(header.compatibility_mask),
            Self::GuestPolicy(header) => Some(header.compatibility_mask),
            Self::Page(header, _) => Some(header.compatibility_mask),
            Self::ParameterArea(..) | Self::Parameter(..) => None,
            Self::ParameterInsert(header) => Some(header.compatibility_mask),
            Self::Context(header, _) => Some(header.compatibility_mask),
            Self::RequiredMemory(header) => Some(header.compatibility_mask),
            Self::IdBlock(header) => Some(header.compatibility_mask),
        }
    }
}

/// Why a file cannot be read. Offsets and sizes are in bytes of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Too short for what it must have.
    #[error("ends at byte {length}, inside {what}")]
    Short {
        /// Size of the file.
        length: usize,
        /// What does not fit.
        what: &'static str,
    },
    /// A field of the fixed header.
    #[error("{field}: expected {expected:#x}, found {found:#x}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it should be.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// A header that is not known, or not with this length.
    #[error("header at byte {at}: type {kind:#x} of {length} bytes is not supported")]
    Unknown {
        /// Where it begins.
        at: usize,
        /// Its type.
        kind: u32,
        /// Its length.
        length: u32,
    },
    /// Platforms come first, then initialization, then directives.
    #[error("header at byte {at}: type {kind:#x} comes after headers that it must precede")]
    Order {
        /// Where it begins.
        at: usize,
        /// Its type.
        kind: u32,
    },
    /// Data that a header refers to.
    #[error("header at byte {at}: its data, {length} bytes at {offset:#x}, is not within the file's data")]
    Data {
        /// Where the header begins.
        at: usize,
        /// Where the data should be.
        offset: u32,
        /// How long it should be.
        length: u64,
    },
    /// A reserved field that is set.
    #[error("header at byte {0}: expected reserved fields of zeros")]
    Reserved(usize),
}

/// Reads all headers of `file`, in order.
///
/// # Errors
/// When anything about the file's structure is not as the format has it.
pub fn read(file: &[u8]) -> Result<Vec<Header>, ReadError> {
    let headers = fixed_header(file)?;
    let data = headers.end..file.len();
    let mut cursor = Cursor { file, at: headers.start, end: headers.end, data };
    let mut found = Vec::new();
    let mut section = 0;
    while cursor.at < cursor.end {
        let at = cursor.at;
        let IGVM_VHS_VARIABLE_HEADER { typ, length } = cursor.take()?;
        let this = [INITIALIZATION, DIRECTIVE].iter().filter(|first| typ.0 >= **first).count();
        if this < section {
            return Err(ReadError::Order { at, kind: typ.0 });
        }
        section = this;
        found.push(cursor.header(at, typ, length)?);
    }
    Ok(found)
}

/// Checks the fixed header and the headers' checksum; returns where the variable headers are.
fn fixed_header(file: &[u8]) -> Result<Range<usize>, ReadError> {
    let short = |what| ReadError::Short { length: file.len(), what };
    let (mut header, _) = IGVM_FIXED_HEADER::read_from_prefix(file).map_err(|_| short("the fixed header"))?;
    let expect = |field, expected, found| {
        if expected == found { Ok(()) } else { Err(ReadError::Field { field, expected, found }) }
    };
    expect("magic", IGVM_MAGIC_VALUE.into(), header.magic.into())?;
    expect("format version", IGVM_FORMAT_VERSION_1.into(), header.format_version.into())?;
    let length = u64::try_from(file.len()).unwrap_or(u64::MAX);
    expect("file size", length, header.total_file_size.into())?;
    let place = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    let start = place(header.variable_header_offset);
    if start < size_of::<IGVM_FIXED_HEADER>() || !start.is_multiple_of(ALIGNMENT) {
        let expected = u64::try_from(size_of::<IGVM_FIXED_HEADER>()).unwrap_or(0);
        return expect("variable header offset", expected, header.variable_header_offset.into())
            .map(|()| start..start);
    }
    let end = start.checked_add(place(header.variable_header_size));
    let headers = end.and_then(|end| file.get(start..end)).ok_or(short("the variable headers"))?;
    let found = header.checksum;
    header.checksum = 0;
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(header.as_bytes());
    checksum.update(headers);
    expect("checksum", checksum.finalize().into(), found.into())?;
    Ok(start..start + headers.len())
}

/// A place among the variable headers.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
    end: usize,
    data: Range<usize>,
}

impl Cursor<'_> {
    /// The next structure, and the padding behind it.
    fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, ReadError> {
        let short = ReadError::Short { length: self.end, what: "a variable header" };
        let rest = self.file.get(self.at..self.end).ok_or_else(|| short.clone())?;
        let (value, _) = T::read_from_prefix(rest).map_err(|_| short.clone())?;
        // The last header may end without padding.
        self.at = self.at.saturating_add(size_of::<T>().next_multiple_of(ALIGNMENT)).min(self.end);
        Ok(value)
    }

    fn header(&mut self, at: usize, kind: IgvmVariableHeaderType, length: u32) -> Result<Header, ReadError> {
        use IgvmVariableHeaderType as Type;
        let is = |size: usize| usize::try_from(length) == Ok(size);
        Ok(match kind {
            Type::IGVM_VHT_SUPPORTED_PLATFORM if is(size_of::<IGVM_VHS_SUPPORTED_PLATFORM>()) => {
                Header::Platform(self.take()?)
            }
            Type::IGVM_VHT_GUEST_POLICY if is(size_of::<IGVM_VHS_GUEST_POLICY>()) => {
                let header: IGVM_VHS_GUEST_POLICY = self.take()?;
                zero(at, header.reserved)?;
                Header::GuestPolicy(header)
            }
            Type::IGVM_VHT_PAGE_DATA if is(size_of::<IGVM_VHS_PAGE_DATA>()) => {
                let header: IGVM_VHS_PAGE_DATA = self.take()?;
                zero(at, header.reserved.into())?;
                Header::Page(header, self.data(at, header.file_offset, PAGE_BYTES)?)
            }
            Type::IGVM_VHT_PARAMETER_AREA if is(size_of::<IGVM_VHS_PARAMETER_AREA>()) => {
                let header: IGVM_VHS_PARAMETER_AREA = self.take()?;
                let length = usize::try_from(header.number_of_bytes).unwrap_or(usize::MAX);
                Header::ParameterArea(header, self.data(at, header.file_offset, length)?)
            }
            Type::IGVM_VHT_VP_COUNT_PARAMETER | Type::IGVM_VHT_MEMORY_MAP | Type::IGVM_VHT_COMMAND_LINE
                if is(size_of::<IGVM_VHS_PARAMETER>()) =>
            {
                Header::Parameter(kind, self.take()?)
            }
            Type::IGVM_VHT_PARAMETER_INSERT if is(size_of::<IGVM_VHS_PARAMETER_INSERT>()) => {
                Header::ParameterInsert(self.take()?)
            }
            Type::IGVM_VHT_VP_CONTEXT if is(size_of::<IGVM_VHS_VP_CONTEXT>()) => {
                let header: IGVM_VHS_VP_CONTEXT = self.take()?;
                zero(at, header.reserved.into())?;
                Header::Context(header, self.data(at, header.file_offset, PAGE_BYTES)?)
            }
            Type::IGVM_VHT_REQUIRED_MEMORY if is(size_of::<IGVM_VHS_REQUIRED_MEMORY>()) => {
                let header: IGVM_VHS_REQUIRED_MEMORY = self.take()?;
                zero(at, header.reserved)?;
                Header::RequiredMemory(header)
            }
            Type::IGVM_VHT_SNP_ID_BLOCK if is(size_of::<IGVM_VHS_SNP_ID_BLOCK>()) => {
                let header: IGVM_VHS_SNP_ID_BLOCK = self.take()?;
                header.reserved.iter().try_for_each(|byte| zero(at, (*byte).into()))?;
                Header::IdBlock(Box::new(header))
            }
            other => return Err(ReadError::Unknown { at, kind: other.0, length }),
        })
    }

    /// Where the data at `offset` is; offset 0 is the format's way to say "none".
    fn data(&self, at: usize, offset: u32, length: usize) -> Result<Range<usize>, ReadError> {
        if offset == 0 {
            return Ok(0..0);
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.checked_add(length).filter(|end| *end <= self.data.end);
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        let end = end.filter(|_| start >= self.data.start);
        Ok(start..end.ok_or(ReadError::Data { at, offset, length })?)
    }
}

fn zero(at: usize, reserved: u32) -> Result<(), ReadError> {
    if reserved == 0 { Ok(()) } else { Err(ReadError::Reserved(at)) }
}

#[cfg(test)]
mod tests {
    use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmInitializationHeader, IgvmPlatformHeader, IgvmRevision};
    use igvm_defs::{IGVM_SEV_SNP_PLATFORM_VERSION, IgvmPageDataFlags, IgvmPageDataType, IgvmPlatformType};
    use proptest::prelude::*;

    use super::*;

    fn file() -> Vec<u8> {
        let platform = IgvmPlatformHeader::SupportedPlatform(IGVM_VHS_SUPPORTED_PLATFORM {
            compatibility_mask: 1,
            highest_vtl: 0,
            platform_type: IgvmPlatformType::SEV_SNP,
            platform_version: IGVM_SEV_SNP_PLATFORM_VERSION,
            shared_gpa_boundary: 0,
        });
        let page = |gpa, fill: Option<u8>| IgvmDirectiveHeader::PageData {
            gpa,
            compatibility_mask: 1,
            flags: IgvmPageDataFlags::new(),
            data_type: IgvmPageDataType::NORMAL,
            data: fill.map(|fill| vec![fill; PAGE_BYTES]).unwrap_or_default(),
        };
        let at = IGVM_VHS_PARAMETER { parameter_area_index: 0, byte_offset: 8 };
        let directives = vec![
            page(0x1000, Some(0x5A)),
            page(0x2000, None),
            IgvmDirectiveHeader::ParameterArea {
                number_of_bytes: 4096,
                parameter_area_index: 0,
                initial_data: Vec::new(),
            },
            IgvmDirectiveHeader::VpCount(at),
            IgvmDirectiveHeader::ParameterInsert(IGVM_VHS_PARAMETER_INSERT {
                gpa: 0x3000,
                compatibility_mask: 1,
                parameter_area_index: 0,
            }),
            IgvmDirectiveHeader::SnpVpContext {
                gpa: 0x4000,
                compatibility_mask: 1,
                vp_index: 0,
                vmsa: Box::new(crate::snp::vmsa::base()),
            },
        ];
        let policy = IgvmInitializationHeader::GuestPolicy { policy: 0x30000, compatibility_mask: 1 };
        let file = IgvmFile::new(IgvmRevision::V1, vec![platform], vec![policy], directives).unwrap();
        let mut bytes = Vec::new();
        file.serialize(&mut bytes).unwrap();
        bytes
    }

    /// Makes size and checksum right again, so that what is behind them is reached.
    fn repair(file: &mut [u8]) {
        let total = u32::try_from(file.len()).unwrap();
        file[16..20].copy_from_slice(&total.to_le_bytes());
        file[20..24].fill(0);
        let word =
            |at: usize| usize::try_from(u32::from_le_bytes(file[at..at + 4].try_into().unwrap())).unwrap();
        let Some(headers) = file.get(word(8)..word(8).saturating_add(word(12))) else { return };
        let mut sum = crc32fast::Hasher::new();
        sum.update(&file[..24]);
        sum.update(headers);
        let sum = sum.finalize().to_le_bytes();
        file[20..24].copy_from_slice(&sum);
    }

    #[test]
    fn what_was_written_is_read() {
        let file = file();
        let headers = read(&file).unwrap();
        assert_eq!(headers.len(), 8);
        let Header::Page(page, data) = &headers[2] else { panic!("{headers:?}") };
        assert_eq!((page.gpa, &file[data.clone()]), (0x1000, &[0x5A; PAGE_BYTES][..]));
        let Header::Page(_, data) = &headers[3] else { panic!("{headers:?}") };
        assert!(data.is_empty());
        let Header::Context(context, data) = &headers[7] else { panic!("{headers:?}") };
        assert_eq!((context.gpa.get(), data.len()), (0x4000, PAGE_BYTES));
    }

    #[test]
    fn every_cut_is_refused() {
        let mut file = file();
        for length in (0..file.len()).rev() {
            file.truncate(length);
            assert!(read(&file).is_err(), "{length}");
            if length >= 24 {
                repair(&mut file);
                assert!(read(&file).is_err(), "{length}, repaired");
            }
        }
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let refused = |change: fn(&mut Vec<u8>)| {
            let mut file = file();
            change(&mut file);
            read(&file).unwrap_err().to_string()
        };
        let magic = refused(|file| file[0] = b'X');
        assert!(magic.starts_with("magic: expected 0x4d564749"), "{magic}");
        assert!(refused(|file| file[4] = 2).starts_with("format version: expected 0x1, found 0x2"));
        assert!(refused(|file| file.push(0)).starts_with("file size"));
        assert!(refused(|file| file[40] ^= 1).starts_with("checksum"));
        let kind = refused(|file| {
            // The first directive's type: behind the fixed header, the platform and the policy.
            file[24 + 24 + 24] = 0x7F;
            repair(file);
        });
        assert_eq!(kind, "header at byte 72: type 0x37f of 24 bytes is not supported");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(noise in proptest::collection::vec((0usize..400, any::<u8>()), 1..12)) {
            let mut file = file();
            for (at, byte) in noise {
                file[at] = byte;
            }
            repair(&mut file);
            if let Ok(headers) = read(&file) {
                for header in headers {
                    if let Header::Page(_, data) | Header::Context(_, data) = header {
                        prop_assert!(file.get(data).is_some());
                    }
                }
            }
        }
    }
}
