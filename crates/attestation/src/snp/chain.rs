//! The chain from a root key to the key that signed a report: ARK → ASK → VCEK, or ARK → ASVK → VLEK.
//!
//! AMD's root keys are pinned by the digest of their SubjectPublicKeyInfo. A simulated root is anybody's; it is known
//! by its name and its kind of key, and is accepted only where the caller allows simulation.

use evidence::{
    certificates::{self, Kind, Table},
    oid,
    report::{Report, SigningKey},
    sim::SIMULATED,
    tcb::{Product, Tcb},
};
use ring::digest::{SHA256, digest};
use thiserror::Error;
use x509_cert::der::{
    Decode as _,
    asn1::{Ia5StringRef, ObjectIdentifier},
};

use super::Expectations;
use crate::{
    Expect, Verdict,
    x509::{self, Certificate},
};

/// SHA-256 of the SubjectPublicKeyInfo of AMD's root keys: a product line each.
const PINNED_ROOTS: [(Product, &str); 3] = [
    (Product::Milan, "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9"),
    (Product::Genoa, "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831"),
    (Product::Turin, "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08"),
];

/// Why certificates cannot be used at all.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum CertificatesError {
    /// The host's table is malformed.
    #[error(transparent)]
    Table(#[from] certificates::Error),
    /// A certificate is malformed.
    #[error("{kind}: {error}")]
    Certificate {
        /// Which one.
        kind: String,
        /// Why.
        error: x509::Error,
    },
    /// A certificate of no use for reports.
    #[error("expected a certificate of an ARK, ASK, ASVK, VCEK or VLEK, found common name {0:?}")]
    Role(String),
}

/// Certificates from wherever they come, one for each role. None is believed before the chain is checked.
#[derive(Debug, Clone, Default)]
pub struct Certificates {
    vcek: Option<Certificate>,
    vlek: Option<Certificate>,
    ask: Option<Certificate>,
    asvk: Option<Certificate>,
    ark: Option<Certificate>,
}

impl Certificates {
    /// What the host provides with a report. Revocation lists and entries of unknown kind in the table are left out:
    /// a list from the host would be the host's choice.
    ///
    /// # Errors
    /// The table or a certificate in it is malformed.
    pub fn from_table(bytes: &[u8]) -> Result<Self, CertificatesError> {
        let mut certificates = Self::default();
        for (kind, der) in Table::parse(bytes)?.entries() {
            let parse = || {
                Certificate::from_der(der)
                    .map_err(|error| CertificatesError::Certificate { kind: kind.to_string(), error })
            };
            match kind {
                Kind::Vcek => certificates.vcek = Some(parse()?),
                Kind::Vlek => certificates.vlek = Some(parse()?),
                Kind::Ark => certificates.ark = Some(parse()?),
                Kind::Ask => {
                    let certificate = parse()?;
                    let slot = if Role::of(&certificate.common_name()) == Some(Role::Asvk) {
                        &mut certificates.asvk
                    } else {
                        &mut certificates.ask
                    };
                    *slot = Some(certificate);
                }
                Kind::Crl | Kind::Other(_) => {}
            }
        }
        Ok(certificates)
    }

    /// Adds a certificate that the verifier has got elsewhere; it goes before the host's of the same role.
    ///
    /// # Errors
    /// Its common name is none that AMD gives, nor a simulated one.
    pub fn add(&mut self, certificate: Certificate) -> Result<(), CertificatesError> {
        let name = certificate.common_name();
        let slot = match Role::of(&name).ok_or(CertificatesError::Role(name))? {
            Role::Vcek => &mut self.vcek,
            Role::Vlek => &mut self.vlek,
            Role::Ask => &mut self.ask,
            Role::Asvk => &mut self.asvk,
            Role::Ark => &mut self.ark,
        };
        *slot = Some(certificate);
        Ok(())
    }
}

/// A certificate's place, as its common name tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Vcek,
    Vlek,
    Ask,
    Asvk,
    Ark,
}

impl Role {
    fn of(common_name: &str) -> Option<Self> {
        if let Some(role) = common_name.strip_prefix(SIMULATED) {
            return match role {
                " VCEK" => Some(Self::Vcek),
                " VLEK" => Some(Self::Vlek),
                " ASK" => Some(Self::Ask),
                " ASVK" => Some(Self::Asvk),
                " ARK" => Some(Self::Ark),
                _ => None,
            };
        }
        match common_name {
            "SEV-VCEK" => Some(Self::Vcek),
            "SEV-VLEK" => Some(Self::Vlek),
            name if name.starts_with("SEV-VLEK-") => Some(Self::Asvk),
            name if name.starts_with("SEV-") => Some(Self::Ask),
            name if name.starts_with("ARK-") => Some(Self::Ark),
            _ => None,
        }
    }
}

/// Whose root key it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    Amd(Product),
    Simulated,
}

impl Root {
    fn of(certificate: &Certificate) -> Option<Self> {
        let info = certificate.public_key_info().ok()?;
        let found = hex::encode(digest(&SHA256, &info));
        if let Some((product, _)) = PINNED_ROOTS.iter().find(|(_, pinned)| *pinned == found) {
            return Some(Self::Amd(*product));
        }
        let simulated = certificate.common_name() == format!("{SIMULATED} ARK") && certificate.has_p384_key();
        simulated.then_some(Self::Simulated)
    }

    /// Common names of root, signer and endorsement key below this root.
    fn names(self, kind: SigningKey) -> [String; 3] {
        let vlek = kind == SigningKey::Vlek;
        match self {
            Self::Amd(line) if vlek => {
                [format!("ARK-{line}"), format!("SEV-VLEK-{line}"), "SEV-VLEK".to_owned()]
            }
            Self::Amd(line) => [format!("ARK-{line}"), format!("SEV-{line}"), "SEV-VCEK".to_owned()],
            Self::Simulated if vlek => ["ARK", "ASVK", "VLEK"].map(|role| format!("{SIMULATED} {role}")),
            Self::Simulated => ["ARK", "ASK", "VCEK"].map(|role| format!("{SIMULATED} {role}")),
        }
    }
}

/// Three certificates that claim to be a chain.
pub(super) struct Chain<'a> {
    root: &'a Certificate,
    signer: &'a Certificate,
    endorsement: &'a Certificate,
}

impl<'a> Chain<'a> {
    /// The certificates that a report signed by a key of this kind needs.
    pub(super) fn select(
        verdict: &mut Verdict,
        certificates: &'a Certificates,
        kind: SigningKey,
    ) -> Option<Self> {
        let (needed, signer, endorsement) = match kind {
            SigningKey::Vlek => (["ARK", "ASVK", "VLEK"], &certificates.asvk, &certificates.vlek),
            SigningKey::Vcek | SigningKey::None => {
                (["ARK", "ASK", "VCEK"], &certificates.ask, &certificates.vcek)
            }
        };
        let slots = [&certificates.ark, signer, endorsement];
        let missing: Vec<_> =
            needed.iter().zip(slots).filter(|(_, slot)| slot.is_none()).map(|(name, _)| *name).collect();
        verdict.check(
            "certificates",
            missing.is_empty(),
            format!("certificates of {}", needed.join(", ")),
            if missing.is_empty() { needed.join(", ") } else { format!("none of {}", missing.join(", ")) },
        );
        Some(Self { root: slots[0].as_ref()?, signer: slots[1].as_ref()?, endorsement: slots[2].as_ref()? })
    }

    pub(super) fn endorsement(&self) -> &'a Certificate {
        self.endorsement
    }

    /// Root, names, signatures, dates, revocation. Gives whose root it is, if it is anybody's.
    pub(super) fn check(
        &self,
        verdict: &mut Verdict,
        kind: SigningKey,
        expectations: &Expectations,
    ) -> Option<Root> {
        let Self { root: ark, signer, endorsement } = *self;
        let root = Root::of(ark);
        self.check_root(verdict, root, expectations.allow_sim);
        let found = [ark, signer, endorsement].map(Certificate::common_name);
        let wanted = root.map(|root| root.names(kind));
        let expected =
            wanted.as_ref().map_or("the names below a known root".to_owned(), |names| names.join(" → "));
        verdict.check("certificate names", wanted.as_ref() == Some(&found), expected, found.join(" → "));

        let expected = "a certificate that the issuer before it has signed";
        let name = |certificate: &Certificate| certificate.common_name();
        verdict.result("root signature", expected, ark.check_issued_by(ark), |()| name(ark));
        verdict.result("signer certificate", expected, signer.check_issued_by(ark), |()| name(signer));
        let issued = endorsement.check_issued_by(signer);
        verdict.result("endorsement key certificate", expected, issued, |()| name(endorsement));

        let at = expectations.now;
        let dates = [ark, signer, endorsement].iter().try_for_each(|certificate| certificate.check_time(at));
        let expected = format!("certificates that are valid at {at} (Unix seconds)");
        verdict.result("certificate dates", &expected, dates, |()| format!("valid at {at} (Unix seconds)"));
        self.check_revocation(verdict, expectations);
        root
    }

    fn check_root(&self, verdict: &mut Verdict, root: Option<Root>, allow_sim: bool) {
        let found = self.root.common_name();
        let expected =
            if allow_sim { "a root key of AMD's, or a simulated one" } else { "a root key of AMD's" };
        match root {
            Some(Root::Amd(product)) => verdict.pass("root key", format!("AMD's for {product}, pinned")),
            Some(Root::Simulated) if allow_sim => {
                verdict.pass("root key", format!("{found}: nothing protects this guest from its host"));
            }
            Some(Root::Simulated) => {
                verdict.fail("root key", expected, format!("{found}, which anybody can make"))
            }
            None => verdict.fail("root key", expected, format!("{found:?}, which is not pinned")),
        }
    }

    fn check_revocation(&self, verdict: &mut Verdict, expectations: &Expectations) {
        let Expect::Is(lists) = &expectations.revocation else {
            return verdict.waive("revocation", "no revocation lists");
        };
        let mut of_root = lists.iter().filter(|list| list.is_issued_by(self.root)).peekable();
        let expected = "a current revocation list of the root key, without the signer";
        if of_root.peek().is_none() {
            return verdict.fail("revocation", expected, format!("no list of {}", self.root.common_name()));
        }
        let result = of_root.try_for_each(|list| list.check(self.signer, self.root, expectations.now));
        verdict.result("revocation", expected, result, |()| "not revoked".to_owned());
    }

    /// What the endorsement key's certificate says of chip and TCB must be what the report says.
    pub(super) fn check_endorsement(
        &self,
        verdict: &mut Verdict,
        report: &Report,
        kind: SigningKey,
        product: Product,
    ) {
        let line = self.string(oid::PRODUCT_NAME).unwrap_or_default();
        let matches = line.split('-').next() == Some(product.name());
        verdict.check("endorsed product", matches, product.name(), line);

        let (endorsed, reported) = (self.tcb(product), report.reported_tcb.decode(product));
        let word =
            |tcb: Option<Tcb>| tcb.map_or("none in this line's layout".to_owned(), |tcb| tcb.to_string());
        let equal = endorsed.is_some() && endorsed == reported;
        verdict.check("endorsed TCB", equal, format!("{} (endorsement key)", word(endorsed)), word(reported));

        let chip = self.extension(oid::HARDWARE_ID);
        if kind == SigningKey::Vlek {
            let provider = self.string(oid::PROVIDER_ID);
            let found = provider.clone().unwrap_or_else(|| "no provider".to_owned());
            let is_vlek = chip.is_none() && provider.is_some();
            return verdict.check("chip", is_vlek, "a provider's key, for no chip in particular", found);
        }
        let id = &report.chip_id;
        let same = chip.is_some_and(|chip| {
            let size = if product == Product::Turin { 8 } else { 64 };
            let (head, tail) = id.split_at(size);
            chip == head && tail.iter().all(|byte| *byte == 0) && head.iter().any(|byte| *byte != 0)
        });
        let expected = chip.map_or("an endorsement key with a chip's identifier".to_owned(), hex::encode);
        verdict.check("chip", same, expected, hex::encode(id));
    }

    fn tcb(&self, product: Product) -> Option<Tcb> {
        let svn = |oid| u8::from_der(self.extension(oid)?).ok();
        Some(Tcb {
            fmc: if product == Product::Turin { Some(svn(oid::FMC)?) } else { None },
            bootloader: svn(oid::BOOTLOADER)?,
            tee: svn(oid::TEE)?,
            snp: svn(oid::SNP)?,
            microcode: svn(oid::MICROCODE)?,
        })
    }

    fn string(&self, oid: &str) -> Option<String> {
        Ia5StringRef::from_der(self.extension(oid)?).ok().map(|text| text.as_str().to_owned())
    }

    fn extension(&self, oid: &str) -> Option<&'a [u8]> {
        self.endorsement.extension(ObjectIdentifier::new(oid).ok()?)
    }
}
