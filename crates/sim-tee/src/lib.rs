//! A TEE in software: what AMD's secure processor and key hierarchy do for a guest, done by the VMM.
//!
//! [`SimTee`] answers report requests with a report of genuine layout, signed by a key with a certificate chain of
//! genuine shape. Nothing here is secret from the host, and everything says so: all certificates are named
//! [`sim::SIMULATED`], and their root is made anew for each machine, so that no verifier can pin it by accident.
//! Verifiers go through the same checks as for a real report, and refuse this root unless told otherwise.
#![forbid(unsafe_code)]

pub mod chain;

use evidence::{
    certificates::{self, Kind},
    policy::GuestPolicy,
    report::{self, FirmwareVersion, Report},
    sim::{self, Answer},
    tcb::{Product, Tcb},
};
use p384::ecdsa::{SigningKey, signature::Signer as _};
use thiserror::Error;
use zerocopy::IntoBytes as _;

use crate::chain::{Authority, EndorsementKey};

/// The product line that the simulated chip claims to belong to.
pub const PRODUCT: Product = Product::Genoa;
/// CPUID family, model and stepping that reports name.
const CPUID: (u8, u8, u8) = (0x19, 0x11, 1);
/// The TCB version of every simulated platform: current, reported, committed and at launch.
pub const TCB: Tcb = Tcb { fmc: None, bootloader: 10, tee: 0, snp: 23, microcode: 84 };
const FIRMWARE: FirmwareVersion = FirmwareVersion { build: 1, minor: 55, major: 1 };
const REPORT_VERSION: u32 = 3;

/// Why a simulated TEE cannot be made, or cannot answer.
#[derive(Debug, Error)]
pub enum Error {
    /// No randomness for keys and identifiers.
    #[error("simulated TEE: expected random bytes from the operating system, found: {0}")]
    Random(#[from] getrandom::Error),
    /// A certificate cannot be made.
    #[error("simulated TEE: cannot issue certificate {name}: {reason}")]
    Certificate {
        /// The certificate's common name.
        name: String,
        /// The reason, in the words of the certificate library.
        reason: String,
    },
    /// The signature operation failed.
    #[error("simulated TEE: cannot sign the report: {0}")]
    Sign(#[from] p384::ecdsa::Error),
    /// The chain does not fit a certificate table.
    #[error(transparent)]
    Table(#[from] certificates::Error),
    /// The report is malformed.
    #[error(transparent)]
    Report(#[from] report::Error),
    /// The answer is malformed.
    #[error(transparent)]
    Answer(#[from] sim::Error),
}

/// What a launch fixes, and every report of the guest repeats.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Launch digest.
    pub measurement: [u8; 48],
    /// Host data.
    pub host_data: [u8; 32],
    /// Guest policy.
    pub policy: GuestPolicy,
    /// From the ID block; zeros without one.
    pub guest_svn: u32,
    /// From the ID block; zeros without one.
    pub family_id: [u8; 16],
    /// From the ID block; zeros without one.
    pub image_id: [u8; 16],
    /// SHA-384 of the public key that signed the ID block; zeros without one.
    pub id_key_digest: [u8; 48],
    /// SHA-384 of the public key that signed the ID key; `None` without one.
    pub author_key_digest: Option<[u8; 48]>,
}

impl Launch {
    /// A launch without an ID block.
    #[must_use]
    pub fn new(measurement: [u8; 48], host_data: [u8; 32], policy: GuestPolicy) -> Self {
        Self {
            measurement,
            host_data,
            policy,
            guest_svn: 0,
            family_id: [0; 16],
            image_id: [0; 16],
            id_key_digest: [0; 48],
            author_key_digest: None,
        }
    }
}

/// One machine's simulated secure processor.
pub struct SimTee {
    /// All of a report but report data and signature.
    template: Report,
    key: SigningKey,
    certificates: Vec<u8>,
}

impl SimTee {
    /// Makes keys and certificates for a machine that has been launched like this.
    ///
    /// Costs three key pairs and three signatures: milliseconds, on a processor that is not emulated.
    ///
    /// # Errors
    /// The operating system has no randomness.
    pub fn new(launch: &Launch) -> Result<Self, Error> {
        let mut identifiers = [0; 64 + 32];
        getrandom::fill(&mut identifiers)?;
        let (chip, report_id) = identifiers.split_at(64);
        let mut template = template(launch)?;
        template.chip_id.copy_from_slice(chip);
        template.report_id.copy_from_slice(report_id);

        let root = Authority::root(&chain::name("ARK"))?;
        let signer = root.subordinate(&chain::name("ASK"))?;
        let vcek = EndorsementKey::Vcek { product: PRODUCT, tcb: TCB, chip_id: template.chip_id };
        let (key, leaf) = signer.endorse(&chain::name("VCEK"), &vcek)?;
        let certificates = certificates::encode(&[
            (Kind::Vcek, &leaf),
            (Kind::Ask, signer.certificate()),
            (Kind::Ark, root.certificate()),
        ])?;
        Ok(Self { template, key, certificates })
    }

    /// The answer to a report request (see [`evidence::sim`]): a signed report for `report_data` at VMPL 0, and the
    /// certificate table.
    ///
    /// # Errors
    /// The signature operation failed.
    pub fn report(&self, report_data: [u8; 64]) -> Result<Vec<u8>, Error> {
        let mut report = self.template.clone();
        report.report_data = report_data;
        sign(&mut report, &self.key)?;
        Ok(Answer { report: report.as_bytes(), certificates: &self.certificates }.encode()?)
    }
}

/// Signs a report as the secure processor does: ECDSA P-384 over SHA-384, numbers little-endian.
///
/// # Errors
/// The signature operation failed.
pub fn sign(report: &mut Report, key: &SigningKey) -> Result<(), Error> {
    let signature: p384::ecdsa::Signature = key.try_sign(report.signed_bytes())?;
    let (r, s) = signature.split_bytes();
    for (field, number) in [(&mut report.signature.r, r), (&mut report.signature.s, s)] {
        field.fill(0);
        for (byte, value) in field.iter_mut().zip(number.iter().rev()) {
            *byte = *value;
        }
    }
    Ok(())
}

fn template(launch: &Launch) -> Result<Report, Error> {
    let mut report = Report::unsigned(REPORT_VERSION)?;
    report.guest_svn = launch.guest_svn.into();
    report.policy = launch.policy.0.into();
    report.family_id = launch.family_id;
    report.image_id = launch.image_id;
    report.signature_algo = Report::ECDSA_P384_SHA384.into();
    report.key_info = u32::from(launch.author_key_digest.is_some()).into();
    report.measurement = launch.measurement;
    report.host_data = launch.host_data;
    report.id_key_digest = launch.id_key_digest;
    report.author_key_digest = launch.author_key_digest.unwrap_or([0; 48]);
    report.report_id_ma = [0xff; 32];
    (report.cpuid_family, report.cpuid_model, report.cpuid_stepping) = CPUID;
    let tcb = TCB.encode(PRODUCT);
    report.current_tcb = tcb;
    report.reported_tcb = tcb;
    report.committed_tcb = tcb;
    report.launch_tcb = tcb;
    report.current_version = FIRMWARE;
    report.committed_version = FIRMWARE;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_repeats_the_launch() {
        let launch = Launch::new([1; 48], [2; 32], GuestPolicy::PRODUCTION);
        let tee = SimTee::new(&launch).unwrap();
        let bytes = tee.report([3; 64]).unwrap();
        let answer = Answer::parse(&bytes).unwrap();
        let report = Report::parse(answer.report).unwrap();
        assert_eq!(report.measurement, [1; 48]);
        assert_eq!(report.host_data, [2; 32]);
        assert_eq!(report.report_data, [3; 64]);
        assert_eq!(report.policy(), GuestPolicy::PRODUCTION);
        assert_eq!(report.product(), Some(PRODUCT));
        assert_eq!(report.reported_tcb.decode(PRODUCT), Some(TCB));
        let table = certificates::Table::parse(answer.certificates).unwrap();
        let kinds: Vec<_> = table.entries().iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [Kind::Vcek, Kind::Ask, Kind::Ark]);
    }

    #[test]
    fn two_machines_share_neither_chip_nor_root() {
        let launch = Launch::new([0; 48], [0; 32], GuestPolicy::PRODUCTION);
        let [one, other] = [(); 2].map(|()| SimTee::new(&launch).unwrap());
        assert_ne!(one.template.chip_id, other.template.chip_id);
        assert_ne!(one.template.report_id, other.template.report_id);
        assert_ne!(one.certificates, other.certificates);
    }
}
