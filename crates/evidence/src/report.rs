//! The SEV-SNP attestation report (AMD SEV-SNP firmware ABI, publication 56860, ATTESTATION_REPORT).
//!
//! [`Report`] is the report's own memory layout. [`Report::parse`] gives one only if its version is known and what
//! that version reserves is zero, so that a field is never read under a meaning that it does not have.

use std::mem::offset_of;

use thiserror::Error;
use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::{
    policy::GuestPolicy,
    tcb::{Product, RawTcb},
};

/// Why bytes are not a report.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// Too short or too long.
    #[error("attestation report: expected {expected} bytes, found {0}", expected = Report::BYTES)]
    Size(usize),
    /// A version whose fields are not known.
    #[error("attestation report at 0x0: expected version 2 to 5, found {0}")]
    Version(u32),
    /// A reserved field has bits set.
    #[error(
        "attestation report of version {version} at {offset:#x}: expected reserved bytes to be zero, found {found:#x}"
    )]
    Reserved {
        /// The report's version.
        version: u32,
        /// Offset of the first byte that is not zero.
        offset: usize,
        /// That byte.
        found: u8,
    },
    /// A count or code outside what the specification has.
    #[error("attestation report at {offset:#x}: expected {expected}, found {found}")]
    Field {
        /// Offset of the field.
        offset: usize,
        /// What it may hold.
        expected: &'static str,
        /// What it holds.
        found: u32,
    },
}

/// A firmware version. Which build implements an interface is not what [`RawTcb`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FirmwareVersion {
    /// Build number.
    pub build: u8,
    /// Minor API version.
    pub minor: u8,
    /// Major API version.
    pub major: u8,
}

/// ECDSA signature as AMD writes it: two little-endian numbers, each in 72 bytes, then zeros.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Signature {
    /// R, little-endian, zero-extended.
    pub r: [u8; 72],
    /// S, little-endian, zero-extended.
    pub s: [u8; 72],
    /// Zero.
    pub reserved: [u8; 368],
}

/// Which key signed a report (KEY_INFO, SIGNING_KEY).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningKey {
    /// The chip's own key for a TCB version.
    Vcek,
    /// The key that AMD lent to a cloud provider.
    Vlek,
    /// None: the report is not signed.
    None,
}

/// KEY_INFO: how the report was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyInfo(pub u32);

impl KeyInfo {
    /// Whether an author key certified the ID key: AUTHOR_KEY_DIGEST then means something.
    #[must_use]
    pub fn author_key_en(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether the host has masked the chip key: the signature is then zeros.
    #[must_use]
    pub fn mask_chip_key(self) -> bool {
        self.0 & 2 != 0
    }

    /// The signing key's kind; `None` if its code is reserved.
    #[must_use]
    pub fn signing_key(self) -> Option<SigningKey> {
        match self.0 >> 2 & 7 {
            0 => Some(SigningKey::Vcek),
            1 => Some(SigningKey::Vlek),
            7 => Some(SigningKey::None),
            _ => None,
        }
    }
}

/// PLATFORM_INFO: how the host's platform is set up. Bits beyond these are newer firmware's and mean no harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlatformInfo(pub u64);

impl PlatformInfo {
    /// Simultaneous multithreading is on.
    pub const SMT: u64 = 1 << 0;
    /// Transparent memory encryption is on.
    pub const TSME: u64 = 1 << 1;
    /// Memory has error correction.
    pub const ECC: u64 = 1 << 2;
    /// Running average power limiting is off.
    pub const RAPL_DISABLED: u64 = 1 << 3;
    /// Ciphertext is hidden from the host.
    pub const CIPHERTEXT_HIDING: u64 = 1 << 4;
    /// Memory was checked for aliased addresses since the last reset, and there are none.
    pub const ALIAS_CHECK_COMPLETE: u64 = 1 << 5;
    /// SEV-TIO is on.
    pub const TIO: u64 = 1 << 7;

    /// Whether all of `bits` are set.
    #[must_use]
    pub fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }
}

/// ATTESTATION_REPORT, versions 2 to 5.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Report {
    /// Version of the layout: 2 to 5.
    pub version: U32,
    /// Security version of the guest, as its ID block says.
    pub guest_svn: U32,
    /// See [`Report::policy`].
    pub policy: U64,
    /// Family, as the ID block says.
    pub family_id: [u8; 16],
    /// Image, as the ID block says.
    pub image_id: [u8; 16],
    /// Privilege level of the requester, 0 to 3; all ones when the host asked.
    pub vmpl: U32,
    /// 1 is ECDSA P-384 with SHA-384.
    pub signature_algo: U32,
    /// What runs now.
    pub current_tcb: RawTcb,
    /// See [`Report::platform_info`].
    pub platform_info: U64,
    /// See [`Report::key_info`].
    pub key_info: U32,
    reserved_4c: [u8; 4],
    /// What the guest asked to have in the report.
    pub report_data: [u8; 64],
    /// Launch digest.
    pub measurement: [u8; 48],
    /// What the host gave at launch: for this product, the digest of the policy.
    pub host_data: [u8; 32],
    /// SHA-384 of the public key that signed the ID block; zeros if there was none.
    pub id_key_digest: [u8; 48],
    /// SHA-384 of the public key that signed the ID key; zeros if there was none.
    pub author_key_digest: [u8; 48],
    /// The guest's own identifier, made by the firmware at launch.
    pub report_id: [u8; 32],
    /// The identifier of its migration agent.
    pub report_id_ma: [u8; 32],
    /// The version whose key signs, which is what a VCEK certificate names.
    pub reported_tcb: RawTcb,
    /// Combined CPUID family, from version 3.
    pub cpuid_family: u8,
    /// Combined CPUID model, from version 3.
    pub cpuid_model: u8,
    /// CPUID stepping, from version 3.
    pub cpuid_stepping: u8,
    reserved_18b: [u8; 21],
    /// The chip's identifier, zeros where the host masks it.
    pub chip_id: [u8; 64],
    /// The version below which the platform cannot be taken any more.
    pub committed_tcb: RawTcb,
    /// Firmware that runs now.
    pub current_version: FirmwareVersion,
    reserved_1eb: u8,
    /// Firmware that is committed.
    pub committed_version: FirmwareVersion,
    reserved_1ef: u8,
    /// The current version when the guest was launched or imported.
    pub launch_tcb: RawTcb,
    /// Mitigations in place when the guest was launched, from version 5.
    pub launch_mit_vector: U64,
    /// Mitigations in place now, from version 5.
    pub current_mit_vector: U64,
    reserved_208: [u8; 152],
    /// Over all bytes before it.
    pub signature: Signature,
}

const _: () = {
    assert!(size_of::<Report>() == Report::BYTES);
    assert!(offset_of!(Report, version) == 0x000);
    assert!(offset_of!(Report, guest_svn) == 0x004);
    assert!(offset_of!(Report, policy) == 0x008);
    assert!(offset_of!(Report, family_id) == 0x010);
    assert!(offset_of!(Report, image_id) == 0x020);
    assert!(offset_of!(Report, vmpl) == 0x030);
    assert!(offset_of!(Report, signature_algo) == 0x034);
    assert!(offset_of!(Report, current_tcb) == 0x038);
    assert!(offset_of!(Report, platform_info) == 0x040);
    assert!(offset_of!(Report, key_info) == 0x048);
    assert!(offset_of!(Report, report_data) == 0x050);
    assert!(offset_of!(Report, measurement) == 0x090);
    assert!(offset_of!(Report, host_data) == 0x0c0);
    assert!(offset_of!(Report, id_key_digest) == 0x0e0);
    assert!(offset_of!(Report, author_key_digest) == 0x110);
    assert!(offset_of!(Report, report_id) == 0x140);
    assert!(offset_of!(Report, report_id_ma) == 0x160);
    assert!(offset_of!(Report, reported_tcb) == 0x180);
    assert!(offset_of!(Report, cpuid_family) == 0x188);
    assert!(offset_of!(Report, cpuid_model) == 0x189);
    assert!(offset_of!(Report, cpuid_stepping) == 0x18a);
    assert!(offset_of!(Report, chip_id) == 0x1a0);
    assert!(offset_of!(Report, committed_tcb) == 0x1e0);
    assert!(offset_of!(Report, current_version) == 0x1e8);
    assert!(offset_of!(Report, committed_version) == 0x1ec);
    assert!(offset_of!(Report, launch_tcb) == 0x1f0);
    assert!(offset_of!(Report, launch_mit_vector) == 0x1f8);
    assert!(offset_of!(Report, current_mit_vector) == 0x200);
    assert!(offset_of!(Report, signature) == Report::SIGNED_BYTES);
};

impl Report {
    /// Bytes of a report.
    pub const BYTES: usize = 1184;
    /// Bytes, from the start, that the signature covers.
    pub const SIGNED_BYTES: usize = 0x2a0;
    /// `signature_algo` of ECDSA P-384 with SHA-384, the only one there is.
    pub const ECDSA_P384_SHA384: u32 = 1;

    /// An unsigned report of `version` with every other field zero, to be filled in by whoever makes reports.
    ///
    /// # Errors
    /// A version that [`Report::parse`] would refuse.
    pub fn unsigned(version: u32) -> Result<Self, Error> {
        check_version(version)?;
        Ok(Self { version: version.into(), ..Self::new_zeroed() })
    }

    /// Takes `bytes` as a report.
    ///
    /// # Errors
    /// The size is not [`Report::BYTES`], the version is not 2 to 5, or what that version reserves is not zero.
    pub fn parse(bytes: &[u8]) -> Result<&Self, Error> {
        let report = Self::ref_from_bytes(bytes).map_err(|_| Error::Size(bytes.len()))?;
        check_version(report.version.get())?;
        report.check_reserved()?;
        if report.key_info().signing_key().is_none() {
            let found = report.key_info.get();
            return Err(Error::Field {
                offset: 0x48,
                expected: "signing key 0, 1 or 7 in bits 2 to 4",
                found,
            });
        }
        Ok(report)
    }

    fn check_reserved(&self) -> Result<(), Error> {
        let version = self.version.get();
        let before_3: &[u8] = if version < 3 { &self.as_bytes()[0x188..0x18b] } else { &[] };
        let before_5: &[u8] = if version < 5 { &self.as_bytes()[0x1f8..0x208] } else { &[] };
        let fields: [(usize, &[u8]); 11] = [
            (0x49, &self.key_info.as_bytes()[1..]),
            (0x4c, &self.reserved_4c),
            (0x188, before_3),
            (0x18b, &self.reserved_18b),
            (0x1eb, self.reserved_1eb.as_bytes()),
            (0x1ef, self.reserved_1ef.as_bytes()),
            (0x1f8, before_5),
            (0x208, &self.reserved_208),
            (0x2a0 + 48, &self.signature.r[48..]),
            (0x2a0 + 72 + 48, &self.signature.s[48..]),
            (0x2a0 + 144, &self.signature.reserved),
        ];
        for (start, field) in fields {
            if let Some(at) = field.iter().position(|byte| *byte != 0) {
                return Err(Error::Reserved { version, offset: start + at, found: field[at] });
            }
        }
        Ok(())
    }

    /// The bytes that the signature covers.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        &self.as_bytes()[..Self::SIGNED_BYTES]
    }

    /// The guest policy.
    #[must_use]
    pub fn policy(&self) -> GuestPolicy {
        GuestPolicy(self.policy.get())
    }

    /// How the platform is set up.
    #[must_use]
    pub fn platform_info(&self) -> PlatformInfo {
        PlatformInfo(self.platform_info.get())
    }

    /// How the report was signed.
    #[must_use]
    pub fn key_info(&self) -> KeyInfo {
        KeyInfo(self.key_info.get())
    }

    /// CPUID family, model and stepping; `None` before version 3.
    #[must_use]
    pub fn cpuid(&self) -> Option<(u8, u8, u8)> {
        (self.version.get() >= 3).then_some((self.cpuid_family, self.cpuid_model, self.cpuid_stepping))
    }

    /// The product line that the report's CPUID fields name; `None` before version 3, or if the line is not known.
    #[must_use]
    pub fn product(&self) -> Option<Product> {
        self.cpuid().and_then(|(family, model, _)| Product::from_cpuid(family, model))
    }

    /// Mitigation vectors at launch and now; `None` before version 5.
    #[must_use]
    pub fn mit_vectors(&self) -> Option<(u64, u64)> {
        (self.version.get() >= 5).then_some((self.launch_mit_vector.get(), self.current_mit_vector.get()))
    }
}

fn check_version(version: u32) -> Result<(), Error> {
    if (2..=5).contains(&version) { Ok(()) } else { Err(Error::Version(version)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn size_and_version_are_checked() {
        assert_eq!(Report::parse(&[0; 1183]), Err(Error::Size(1183)));
        assert_eq!(Report::parse(&[0; 1185]), Err(Error::Size(1185)));
        assert_eq!(Report::parse(&[0; 1184]), Err(Error::Version(0)));
        assert_eq!(Report::unsigned(6), Err(Error::Version(6)));
        for version in 2..=5 {
            let report = Report::unsigned(version).unwrap();
            assert_eq!(Report::parse(report.as_bytes()).unwrap(), &report);
        }
    }

    #[test]
    fn reserved_bytes_depend_on_the_version() {
        let refused = |version: u32, offset: usize| {
            let mut bytes = Report::unsigned(version).unwrap().as_bytes().to_vec();
            bytes[offset] = 0x40;
            match Report::parse(&bytes) {
                Ok(_) => false,
                Err(Error::Reserved { offset: at, found: 0x40, .. }) if at == offset => true,
                Err(error) => panic!("{error}"),
            }
        };
        for offset in [
            0x49, 0x4c, 0x4f, 0x18b, 0x19f, 0x1eb, 0x1ef, 0x208, 0x29f, 0x2d0, 0x2e7, 0x318, 0x32f, 0x330,
            0x49f,
        ] {
            assert!((2..=5).all(|version| refused(version, offset)), "{offset:#x}");
        }
        assert!(refused(2, 0x188) && !refused(3, 0x188));
        assert!(refused(4, 0x1f8) && !refused(5, 0x1f8));
        assert!(refused(4, 0x207) && !refused(5, 0x207));
    }

    #[test]
    fn reserved_signing_keys_are_refused() {
        let mut report = Report::unsigned(3).unwrap();
        report.key_info = (2 << 2).into();
        assert!(matches!(Report::parse(report.as_bytes()), Err(Error::Field { offset: 0x48, found: 8, .. })));
        report.key_info = (7 << 2 | 1).into();
        let info = Report::parse(report.as_bytes()).unwrap().key_info();
        assert_eq!(info.signing_key(), Some(SigningKey::None));
        assert!(info.author_key_en() && !info.mask_chip_key());
    }

    #[test]
    fn fields_by_version() {
        let mut report = Report::unsigned(2).unwrap();
        assert_eq!((report.cpuid(), report.product(), report.mit_vectors()), (None, None, None));
        report.version = 5.into();
        (report.cpuid_family, report.cpuid_model) = (0x19, 0x11);
        assert_eq!(report.product(), Some(Product::Genoa));
        assert_eq!(report.mit_vectors(), Some((0, 0)));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 1180..1188), version in 0u8..8) {
            bytes[..4].copy_from_slice(&[version, 0, 0, 0]);
            if let Ok(report) = Report::parse(&bytes) {
                let _ = (report.product(), report.policy().to_string(), report.reported_tcb.decode(Product::Turin));
            }
        }
    }
}
