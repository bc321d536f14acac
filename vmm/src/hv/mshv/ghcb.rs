//! The guest-hypervisor communication block: what a guest asks of its host by `VMGEXIT`.
//!
//! AMD "SEV-ES Guest-Hypervisor Communication Block Standardization", publication 56421, revision 2.03. The
//! page is shared: the guest may change it at any time. What decides anything is taken from the copies in the
//! hypervisor's message where it has one, and read once where it has not.

use std::io;

use super::abi::VmgexitIntercept;
use crate::hv::seam::RunPage;

/// Versions of the protocol that are spoken here.
pub const VERSIONS: std::ops::RangeInclusive<u16> = 1..=2;

/// Low bits of the GHCB MSR: what it holds.
const MSR_INFO_BITS: u32 = 12;
const MSR_INFO_MASK: u64 = (1 << MSR_INFO_BITS) - 1;

const MSR_GHCB: u64 = 0x000;
const MSR_SEV_INFO_RESPONSE: u64 = 0x001;
const MSR_SEV_INFO_REQUEST: u64 = 0x002;
const MSR_PREFERRED_REQUEST: u64 = 0x010;
const MSR_PREFERRED_RESPONSE: u64 = 0x011;
const MSR_REGISTER_REQUEST: u64 = 0x012;
const MSR_REGISTER_RESPONSE: u64 = 0x013;
const MSR_FEATURES_REQUEST: u64 = 0x080;
const MSR_FEATURES_RESPONSE: u64 = 0x081;
const MSR_TERMINATION_REQUEST: u64 = 0x100;

/// All 52 bits set: no preference, or refused.
const NO_PAGE: u64 = u64::MAX >> MSR_INFO_BITS;

/// Features of this hypervisor: SEV-SNP, and virtual CPUs made by the guest.
pub const FEATURES: u64 = 1 | 1 << 1;

/// What the GHCB MSR holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsrRequest {
    /// The address of a GHCB with a request in it.
    Page(u64),
    /// Which protocol versions, and where the encryption bit is.
    SevInfo,
    /// Where the hypervisor would like the GHCB.
    PreferredPage,
    /// The guest will use this page.
    RegisterPage(u64),
    /// Which features the hypervisor has.
    Features,
    /// The guest ends itself.
    Terminate {
        /// Who defines the reason.
        set: u64,
        /// The reason.
        code: u64,
    },
    /// Anything else.
    Unknown(u64),
}

impl MsrRequest {
    /// Decodes the MSR.
    pub const fn decode(msr: u64) -> Self {
        let data = msr >> MSR_INFO_BITS;
        match msr & MSR_INFO_MASK {
            MSR_GHCB => Self::Page(msr),
            MSR_SEV_INFO_REQUEST => Self::SevInfo,
            MSR_PREFERRED_REQUEST => Self::PreferredPage,
            MSR_REGISTER_REQUEST => Self::RegisterPage(data << MSR_INFO_BITS),
            MSR_FEATURES_REQUEST => Self::Features,
            MSR_TERMINATION_REQUEST => Self::Terminate { set: data & 0xF, code: data >> 4 & 0xFF },
            _ => Self::Unknown(msr),
        }
    }
}

/// The answer to [`MsrRequest::SevInfo`].
pub fn sev_info(encryption_bit: u32) -> u64 {
    let versions = u64::from(*VERSIONS.end()) << 48 | u64::from(*VERSIONS.start()) << 32;
    versions | u64::from(encryption_bit & 0xFF) << 24 | MSR_SEV_INFO_RESPONSE
}

/// The answer to [`MsrRequest::PreferredPage`]: any.
pub const fn no_preference() -> u64 {
    NO_PAGE << MSR_INFO_BITS | MSR_PREFERRED_RESPONSE
}

/// The answer to [`MsrRequest::RegisterPage`]: the same page, or none when it was refused.
pub const fn registered(page: Option<u64>) -> u64 {
    match page {
        Some(gpa) => gpa | MSR_REGISTER_RESPONSE,
        None => NO_PAGE << MSR_INFO_BITS | MSR_REGISTER_RESPONSE,
    }
}

/// The answer to [`MsrRequest::Features`].
pub const fn features() -> u64 {
    FEATURES << MSR_INFO_BITS | MSR_FEATURES_RESPONSE
}

/// Why the guest ended itself, in words.
pub fn termination(set: u64, code: u64) -> String {
    let reason = match (set, code) {
        (0, 0) => "general request",
        (0, 1) => "SEV features or protocol version not supported",
        (0, 2) => "SEV-SNP features not supported",
        _ => return format!("the guest ended itself (reason set {set}, code {code:#x})"),
    };
    format!("the guest ended itself: {reason} (reason set {set}, code {code:#x})")
}

/// What a GHCB asks for, checked as far as the request alone allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Output to a port: 1, 2 or 4 bytes.
    PortOut {
        /// The port.
        port: u16,
        /// The bytes.
        data: [u8; 4],
        /// How many.
        length: usize,
    },
    /// Input from a port: 1, 2 or 4 bytes.
    PortIn {
        /// The port.
        port: u16,
        /// How many bytes.
        length: usize,
    },
    /// A read from a device.
    MmioRead {
        /// Where.
        gpa: u64,
        /// How many bytes.
        length: usize,
    },
    /// A write to a device.
    MmioWrite {
        /// Where.
        gpa: u64,
        /// The bytes.
        data: [u8; 8],
        /// How many.
        length: usize,
    },
    /// A message for the secure processor, perhaps with room for certificates.
    SecureProcessor {
        /// Page of the message.
        request: u64,
        /// Page for the answer.
        response: u64,
        /// Where certificates go, and in how many pages.
        certificates: Option<(u64, u64)>,
    },
    /// Start of another virtual CPU.
    CreateVcpu {
        /// Its APIC identifier.
        apic_id: u32,
        /// Page of its save area.
        vmsa: u64,
        /// Its SEV features.
        features: u64,
    },
    /// The doorbell page of restricted injection.
    Doorbell(Doorbell),
    /// Which features the hypervisor has.
    Features,
    /// The guest ends itself.
    Terminate {
        /// Who defines the reason.
        set: u64,
        /// The reason.
        code: u64,
    },
}

/// What a guest does with its doorbell page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doorbell {
    /// Asks where the hypervisor would like it.
    Preferred,
    /// Sets it.
    Set(u64),
    /// Asks for it.
    Query,
    /// Takes it back.
    Clear,
}

/// Why a request is refused: the guest is told, and it may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Refusal {
    /// The page is in a format that is not spoken here.
    Usage = 2,
    /// The buffer is not where it must be.
    ScratchArea = 3,
    /// A field that the request needs is not marked valid.
    MissingInput = 4,
    /// A field has a value that the request does not allow.
    Input = 5,
    /// There is no such request here.
    Event = 6,
}

/// Exit codes (AMD64 architecture manual volume 2, appendix C; publication 56421, "supported non-automatic exits").
const EXIT_IOIO: u64 = 0x7B;
const EXIT_MMIO_READ: u64 = 0x8000_0001;
const EXIT_MMIO_WRITE: u64 = 0x8000_0002;
const EXIT_GUEST_REQUEST: u64 = 0x8000_0011;
const EXIT_EXTENDED_GUEST_REQUEST: u64 = 0x8000_0012;
const EXIT_AP_CREATION: u64 = 0x8000_0013;
const EXIT_DOORBELL: u64 = 0x8000_0014;
const EXIT_FEATURES: u64 = 0x8000_FFFD;
const EXIT_TERMINATION: u64 = 0x8000_FFFE;

/// A field of the save area that a request may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field(usize);

const RAX: Field = Field(0x1F8);
const RBX: Field = Field(0x318);
const EXIT_CODE: Field = Field(0x390);
const EXIT_INFO1: Field = Field(0x398);
const EXIT_INFO2: Field = Field(0x3A0);
const SCRATCH: Field = Field(0x3A8);
const VALID_BITMAP: usize = 0x3F0;
const SHARED_BUFFER: usize = 0x800;

/// Why a GHCB could not be decoded.
#[derive(Debug)]
pub enum Fault {
    /// The request breaks a rule.
    Refused(Refusal),
    /// The page cannot be accessed.
    Page(io::Error),
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Page(error)
    }
}

/// A GHCB: the page, and what is known of it from the hypervisor.
#[derive(Debug)]
pub struct Ghcb<'a> {
    page: &'a mut RunPage,
}

impl<'a> Ghcb<'a> {
    /// The GHCB of a virtual CPU.
    pub fn new(page: &'a mut RunPage) -> Self {
        Self { page }
    }

    fn number(&self, field: Field) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.page.read(field.0, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn set(&mut self, field: Field, value: u64) -> io::Result<()> {
        self.page.write(field.0, &value.to_le_bytes())?;
        let (byte, bit) = valid_bit(field);
        let mut valid = [0];
        self.page.read(byte, &mut valid)?;
        self.page.write(byte, &[valid[0] | bit])
    }

    fn demand(&self, fields: &[Field]) -> Result<(), Fault> {
        let mut valid = [0; 16];
        self.page.read(VALID_BITMAP, &mut valid)?;
        let is_valid = |field: &Field| {
            let (byte, bit) = valid_bit(*field);
            valid.get(byte - VALID_BITMAP).is_some_and(|byte| byte & bit != 0)
        };
        if fields.iter().all(is_valid) { Ok(()) } else { Err(Refusal::MissingInput.into()) }
    }

    /// Tells the guest that its request was done.
    pub fn succeed(&mut self) -> io::Result<()> {
        self.set(EXIT_INFO1, 0)
    }

    /// Tells the guest that its request was done, with a second answer.
    pub fn succeed_with(&mut self, info2: u64) -> io::Result<()> {
        self.set(EXIT_INFO2, info2)?;
        self.succeed()
    }

    /// Tells the guest that its request was refused.
    pub fn refuse(&mut self, refusal: Refusal) -> io::Result<()> {
        const MALFORMED_INPUT: u64 = 2;
        self.set(EXIT_INFO1, MALFORMED_INPUT)?;
        self.set(EXIT_INFO2, refusal as u64)
    }

    /// Answers input from a port. Bytes of EAX above the operand stay, as after `IN`.
    pub fn put_port(&mut self, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.number(RAX)?.to_le_bytes();
        bytes.iter_mut().skip(4).for_each(|byte| *byte = 0);
        bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        self.set(RAX, u64::from_le_bytes(bytes))?;
        self.succeed()
    }

    /// Answers a read from a device.
    pub fn put_mmio(&mut self, data: &[u8]) -> io::Result<()> {
        self.page.write(SHARED_BUFFER, data)?;
        self.succeed()
    }

    /// Decodes the request of `message`, whose GHCB is at `gpa`.
    ///
    /// # Errors
    /// When the request breaks a rule of the protocol, or the page cannot be read.
    pub fn request(&self, message: &VmgexitIntercept, gpa: u64) -> Result<Request, Fault> {
        if message.usage.get() != 0 || !VERSIONS.contains(&message.version.get()) {
            return Err(Refusal::Usage.into());
        }
        self.demand(&[EXIT_CODE, EXIT_INFO1, EXIT_INFO2])?;
        let (info1, info2) = (message.info1.get(), message.info2.get());
        match message.exit_code.get() {
            EXIT_IOIO => self.port(info1),
            EXIT_MMIO_READ => Ok(Request::MmioRead { gpa: info1, length: self.mmio_length(message, gpa)? }),
            EXIT_MMIO_WRITE => {
                let length = self.mmio_length(message, gpa)?;
                let mut data = [0; 8];
                self.page.read(SHARED_BUFFER, &mut data)?;
                Ok(Request::MmioWrite { gpa: info1, data, length })
            }
            EXIT_GUEST_REQUEST => {
                Ok(Request::SecureProcessor { request: info1, response: info2, certificates: None })
            }
            EXIT_EXTENDED_GUEST_REQUEST => {
                self.demand(&[RAX, RBX])?;
                let certificates = Some((self.number(RAX)?, self.number(RBX)?));
                Ok(Request::SecureProcessor { request: info1, response: info2, certificates })
            }
            EXIT_AP_CREATION => self.create(info1, info2),
            EXIT_DOORBELL => Ok(Request::Doorbell(doorbell(info1, info2)?)),
            EXIT_FEATURES => Ok(Request::Features),
            EXIT_TERMINATION => Ok(Request::Terminate { set: info1 & 0xF, code: info1 >> 4 & 0xFF }),
            _ => Err(Refusal::Event.into()),
        }
    }

    fn port(&self, info1: u64) -> Result<Request, Fault> {
        const INPUT: u64 = 1;
        /// String and repeated operations would make the host walk the guest's memory: none is needed.
        const STRING_OR_REPEAT: u64 = 1 << 2 | 1 << 3;
        let length = match info1 >> 4 & 7 {
            size @ (1 | 2 | 4) if info1 & STRING_OR_REPEAT == 0 => size,
            _ => return Err(Refusal::Input.into()),
        };
        let length = usize::try_from(length).map_err(|_| Refusal::Input)?;
        let port = u16::try_from(info1 >> 16).map_err(|_| Refusal::Input)?;
        if info1 & INPUT != 0 {
            return Ok(Request::PortIn { port, length });
        }
        self.demand(&[RAX])?;
        let mut data = [0; 4];
        self.page.read(RAX.0, &mut data)?;
        Ok(Request::PortOut { port, data, length })
    }

    /// The length of an access to a device, whose bytes are to be in the page itself.
    fn mmio_length(&self, message: &VmgexitIntercept, gpa: u64) -> Result<usize, Fault> {
        self.demand(&[SCRATCH])?;
        if Some(message.scratch.get()) != gpa.checked_add(SHARED_BUFFER as u64) {
            return Err(Refusal::ScratchArea.into());
        }
        let length = message.info2.get();
        let fits = message.info1.get().checked_add(length).is_some();
        match usize::try_from(length) {
            Ok(length @ (1 | 2 | 4 | 8)) if fits => Ok(length),
            _ => Err(Refusal::Input.into()),
        }
    }

    fn create(&self, info1: u64, vmsa: u64) -> Result<Request, Fault> {
        const CREATE: u64 = 1;
        self.demand(&[RAX])?;
        let (operation, level) = (info1 & 0xFFFF, info1 >> 16 & 0xFFFF);
        if operation != CREATE || level != 0 {
            return Err(Refusal::Input.into());
        }
        let apic_id = u32::try_from(info1 >> 32).map_err(|_| Refusal::Input)?;
        Ok(Request::CreateVcpu { apic_id, vmsa, features: self.number(RAX)? })
    }
}

const fn doorbell(info1: u64, info2: u64) -> Result<Doorbell, Refusal> {
    match info1 {
        0 => Ok(Doorbell::Preferred),
        1 => Ok(Doorbell::Set(info2)),
        2 => Ok(Doorbell::Query),
        3 => Ok(Doorbell::Clear),
        _ => Err(Refusal::Input),
    }
}

/// Byte and mask of a field's bit in the bitmap of valid fields: one bit for every 8 bytes.
const fn valid_bit(field: Field) -> (usize, u8) {
    let index = field.0 / 8;
    (VALID_BITMAP + index / 8, 1 << (index % 8))
}
