//! AMD SEV-SNP reports.
//!
//! The checks go from the outside in: is this a report, did a key of a genuine chip sign it, is the platform good
//! enough, and is the guest the one that was asked for. All are made, whatever failed before, as far as the evidence
//! lets them, so that one run shows everything that is wrong.

mod chain;

use evidence::{
    policy::GuestPolicy,
    report::{self, Report, SigningKey},
    tcb::{Product, RawTcb, Tcb},
};
use ring::signature::ECDSA_P384_SHA384_FIXED;

pub use self::chain::{Certificates, CertificatesError};
use self::chain::{Chain, Root};
use crate::{Expect, Verdict, id_block::big_endian, x509::RevocationList};

/// What a report must say.
#[derive(Debug, Clone)]
pub struct Expectations {
    /// The time at which certificates must be valid, in Unix seconds: the verifier's, never the guest's or the host's.
    pub now: u64,
    /// Whether a simulated TEE will do.
    pub allow_sim: bool,
    /// Product lines that are not to be believed, whatever their TCB.
    pub excluded_products: Vec<Product>,
    /// Revocation lists of the root keys; those of other lines are ignored.
    pub revocation: Expect<Vec<RevocationList>>,
    /// The lowest TCB version for each product line that is acceptable at all.
    pub tcb_floor: Expect<Vec<(Product, Tcb)>>,
    /// Bits of PLATFORM_INFO that must be set, and that must be clear.
    pub platform: Expect<PlatformRule>,
    /// Privilege level of the requester.
    pub vmpl: Expect<u32>,
    /// The guest policy.
    pub policy: PolicyRule,
    /// Launch digests that will do.
    pub measurement: Expect<Vec<[u8; 48]>>,
    /// Lowest security version of the guest.
    pub guest_svn: Expect<u32>,
    /// Digest of the key that signed the ID block; zeros demand that there was none.
    pub id_key_digest: Expect<[u8; 48]>,
    /// Digest of the key that signed the ID key; zeros demand that there was none.
    pub author_key_digest: Expect<[u8; 48]>,
    /// Host data: the digest of the pod's policy.
    pub host_data: Expect<[u8; 32]>,
    /// Report data: what ties the report to this conversation.
    pub report_data: Expect<[u8; 64]>,
}

/// What PLATFORM_INFO must have (see [`report::PlatformInfo`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlatformRule {
    /// Bits that must be one.
    pub set: u64,
    /// Bits that must be zero.
    pub clear: u64,
}

/// What the guest policy must have. The policy is no part of the launch digest, so it is checked bit by bit.
#[derive(Debug, Clone)]
pub struct PolicyRule {
    /// Debugging by the host; anything but `Is(false)` gives up the guest's secrets.
    pub debug: Expect<bool>,
    /// Migration by a migration agent.
    pub migrate_ma: Expect<bool>,
    /// Simultaneous multithreading in the host.
    pub smt: Expect<bool>,
    /// Confinement to one socket.
    pub single_socket: Expect<bool>,
    /// Lowest firmware ABI, major and minor.
    pub min_abi: Expect<(u8, u8)>,
    /// All bits.
    pub exact: Expect<GuestPolicy>,
}

impl PolicyRule {
    /// No debugging and no migration; all other bits as they come.
    #[must_use]
    pub fn no_debug_no_migration() -> Self {
        Self {
            debug: Expect::Is(false),
            migrate_ma: Expect::Is(false),
            smt: Expect::Waived,
            single_socket: Expect::Waived,
            min_abi: Expect::Waived,
            exact: Expect::Waived,
        }
    }
}

/// Verifies a report. The verdict is accepted only if every check passed or was waived.
#[must_use]
pub fn verify(report: &[u8], certificates: &Certificates, expectations: &Expectations) -> Verdict {
    let mut verdict = Verdict::default();
    let report = match Report::parse(report) {
        Ok(report) => report,
        Err(error) => {
            let name =
                if matches!(error, report::Error::Version(_)) { "report version" } else { "report format" };
            verdict.fail(name, "an attestation report of version 2 to 5", error.to_string());
            return verdict;
        }
    };
    verdict.pass("report version", report.version.to_string());
    let algorithm = report.signature_algo.get();
    verdict.check(
        "signature algorithm",
        algorithm == Report::ECDSA_P384_SHA384,
        "1 (ECDSA P-384 with SHA-384)",
        algorithm.to_string(),
    );
    let product = match check_signing_key(&mut verdict, report) {
        Some(kind) => check_origin(&mut verdict, report, kind, certificates, expectations),
        None => None,
    };
    check_platform(&mut verdict, report, product, expectations);
    check_policy(&mut verdict, report.policy(), &expectations.policy);
    check_guest(&mut verdict, report, expectations);
    verdict
}

fn check_signing_key(verdict: &mut Verdict, report: &Report) -> Option<SigningKey> {
    let info = report.key_info();
    let expected = "a report that the VCEK or the VLEK has signed";
    match info.signing_key() {
        _ if info.mask_chip_key() => verdict.fail("signing key", expected, "a masked chip key: no signature"),
        Some(SigningKey::Vcek) => {
            verdict.pass("signing key", "VCEK");
            return Some(SigningKey::Vcek);
        }
        Some(SigningKey::Vlek) => {
            verdict.pass("signing key", "VLEK");
            return Some(SigningKey::Vlek);
        }
        Some(SigningKey::None) | None => verdict.fail("signing key", expected, "an unsigned report"),
    }
    None
}

/// Who signed: the certificate chain, what it says of the platform, and the report's signature. Gives the product
/// line, as far as anything names it.
fn check_origin(
    verdict: &mut Verdict,
    report: &Report,
    kind: SigningKey,
    certificates: &Certificates,
    expectations: &Expectations,
) -> Option<Product> {
    let Some(chain) = Chain::select(verdict, certificates, kind) else {
        check_product(verdict, report, None, expectations);
        return report.product();
    };
    let root = chain.check(verdict, kind, expectations);
    let product = check_product(verdict, report, root, expectations);
    if let Some(product) = product {
        chain.check_endorsement(verdict, report, kind, product);
    } else {
        verdict.fail("endorsed TCB", "a product line that is known", "none");
    }
    let signed = chain.endorsement().check_message(
        &ECDSA_P384_SHA384_FIXED,
        report.signed_bytes(),
        &big_endian(&report.signature),
        "report",
    );
    verdict.result("report signature", "a signature by the endorsement key", signed, |()| {
        chain.endorsement().common_name()
    });
    product
}

/// The line is the one whose root key signed; the report's own word, where it has one, must agree.
fn check_product(
    verdict: &mut Verdict,
    report: &Report,
    root: Option<Root>,
    expectations: &Expectations,
) -> Option<Product> {
    let claimed = report.product();
    let rooted = match root {
        Some(Root::Amd(product)) => Some(product),
        Some(Root::Simulated) | None => claimed,
    };
    let found = match (report.cpuid(), claimed) {
        (Some(_), Some(product)) => product.to_string(),
        (Some((family, model, stepping)), None) => {
            format!("unknown CPUID family {family:#x}, model {model:#x}, stepping {stepping:#x}")
        }
        (None, _) => {
            rooted.map_or("no CPUID in the report, no known root".to_owned(), |p| format!("{p}, by its root"))
        }
    };
    let agrees = rooted.is_some() && (report.cpuid().is_none() || claimed == rooted);
    let expected = rooted
        .map_or("a known product line".to_owned(), |product| format!("{product}, as the root key says"));
    verdict.check("product line", agrees, expected, found.clone());
    let excluded = &expectations.excluded_products;
    let names = || excluded.iter().map(|product| product.name()).collect::<Vec<_>>().join(", ");
    verdict.check(
        "product line allowed",
        rooted.is_some_and(|product| !excluded.contains(&product)),
        format!("a product line other than: {}", names()),
        found,
    );
    rooted
}

fn check_platform(
    verdict: &mut Verdict,
    report: &Report,
    product: Option<Product>,
    expectations: &Expectations,
) {
    for (name, raw) in [
        ("reported TCB", report.reported_tcb),
        ("committed TCB", report.committed_tcb),
        ("launch TCB", report.launch_tcb),
        ("current TCB", report.current_tcb),
    ] {
        check_tcb(verdict, name, raw, product, &expectations.tcb_floor);
    }
    let info = report.platform_info();
    verdict.expect(
        "platform info",
        &expectations.platform,
        format!("{:#x}", info.0),
        |rule| info.has(rule.set) && info.0 & rule.clear == 0,
        |rule| format!("bits {:#x} set and bits {:#x} clear", rule.set, rule.clear),
    );
}

fn check_tcb(
    verdict: &mut Verdict,
    name: &'static str,
    raw: RawTcb,
    product: Option<Product>,
    floors: &Expect<Vec<(Product, Tcb)>>,
) {
    let Some((product, tcb)) = product.and_then(|product| Some((product, raw.decode(product)?))) else {
        let found = hex::encode(raw.0);
        return verdict.fail(name, "a TCB version in the layout of the product line", found);
    };
    let floor_of =
        |floors: &Vec<(Product, Tcb)>| floors.iter().find(|(line, _)| *line == product).map(|(_, tcb)| *tcb);
    verdict.expect(
        name,
        floors,
        tcb.to_string(),
        |floors| floor_of(floors).is_some_and(|floor| tcb.meets(&floor)),
        |floors| match floor_of(floors) {
            Some(floor) => format!("at least {floor}"),
            None => format!("a product line with a floor, which {product} has not"),
        },
    );
}

fn check_policy(verdict: &mut Verdict, policy: GuestPolicy, rule: &PolicyRule) {
    verdict.check(
        "policy reserved bits",
        policy.reserved_bits_hold(),
        "bit 17 one, bits 26 to 63 zero",
        format!("{:#x}", policy.0),
    );
    let word = |set: bool| if set { "allowed" } else { "not allowed" };
    for (name, bit, demand) in [
        ("policy debug", GuestPolicy::DEBUG, &rule.debug),
        ("policy migration", GuestPolicy::MIGRATE_MA, &rule.migrate_ma),
        ("policy SMT", GuestPolicy::SMT, &rule.smt),
    ] {
        let found = policy.has(bit);
        verdict.expect(
            name,
            demand,
            word(found),
            |wanted| *wanted == found,
            |wanted| word(*wanted).to_owned(),
        );
    }
    let single = policy.has(GuestPolicy::SINGLE_SOCKET);
    let word = |single: bool| if single { "required" } else { "not required" };
    verdict.expect(
        "policy single socket",
        &rule.single_socket,
        word(single),
        |wanted| *wanted == single,
        |wanted| word(*wanted).to_owned(),
    );
    let (major, minor) = policy.abi();
    verdict.expect(
        "policy ABI",
        &rule.min_abi,
        format!("{major}.{minor}"),
        |wanted| (major, minor) >= *wanted,
        |(major, minor)| format!("at least {major}.{minor}"),
    );
    verdict.expect(
        "policy",
        &rule.exact,
        policy.to_string(),
        |wanted| *wanted == policy,
        GuestPolicy::to_string,
    );
}

fn check_guest(verdict: &mut Verdict, report: &Report, expectations: &Expectations) {
    let vmpl = report.vmpl.get();
    verdict.expect("VMPL", &expectations.vmpl, vmpl.to_string(), |wanted| *wanted == vmpl, u32::to_string);
    verdict.expect_one_of("measurement", &expectations.measurement, &report.measurement);
    let svn = report.guest_svn.get();
    verdict.expect(
        "guest SVN",
        &expectations.guest_svn,
        svn.to_string(),
        |floor| svn >= *floor,
        |floor| format!("at least {floor}"),
    );
    verdict.expect_bytes("ID key digest", &expectations.id_key_digest, &report.id_key_digest);
    let author = if report.key_info().author_key_en() { report.author_key_digest } else { [0; 48] };
    verdict.expect_bytes("author key digest", &expectations.author_key_digest, &author);
    verdict.expect_bytes("host data", &expectations.host_data, &report.host_data);
    verdict.expect_bytes("report data", &expectations.report_data, &report.report_data);
}
