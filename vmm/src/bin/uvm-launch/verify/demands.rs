//! What evidence must say, as the command line has it. What ties evidence to an image, a policy and a conversation
//! is demanded or waived by name: leaving it out is refused.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use attestation::endorsement::{self, Issuer};
use attestation::snp::{self, PolicyRule};
use attestation::x509::RevocationList;
use attestation::{Expect, tdx};
use clap::ValueEnum;
use evidence::policy::GuestPolicy;
use launch::plan::{HostData, Tee};
use measure::profile::Profile;

use super::floor::Floor;
use crate::input::{HostDataArguments, ImageFile, bytes, number, read};
use crate::launch_arguments::{Loader, MeasuredTee, Vcpus, check_limit, tee_of};

/// What may be left unchecked, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Waiver {
    /// What was launched.
    Measurement,
    /// Under which policy of the pod's owner.
    HostData,
    /// In answer to which request.
    ReportData,
    /// At which privilege level the guest asked.
    Vmpl,
    /// What was measured at run time (TDX).
    Rtmrs,
}

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct DemandArguments {
    /// Launch measurement that will do; may be given several times.
    #[arg(long, value_name = "HEX", value_parser = bytes::<48>)]
    measurement: Vec<[u8; 48]>,
    /// An image whose measurements will do, with the numbers of vCPUs that --vcpus says.
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// With --image: isolation [default: every one that the image is for].
    #[arg(long, requires = "image")]
    tee: Option<MeasuredTee>,
    /// With --image: who loads it.
    #[arg(long, default_value = "kvm")]
    backend: Loader,
    /// With --image: number of vCPUs, or a range such as 1-8.
    #[arg(long, default_value = "1")]
    vcpus: Vcpus,
    /// A signed endorsement of the measurement (COSE_Sign1).
    #[arg(long, value_name = "FILE", requires = "issuer", requires = "feed")]
    endorsement: Option<PathBuf>,
    /// Who must have signed the endorsement: did:x509:0:sha256:…::eku:….
    #[arg(long, value_name = "DID", requires = "endorsement")]
    issuer: Option<Issuer>,
    /// The feed that the endorsement must be of.
    #[arg(long, requires = "endorsement")]
    feed: Option<String>,
    /// Lowest security version in the endorsement.
    #[arg(long, value_name = "SVN", default_value_t = 0, requires = "endorsement")]
    min_endorsed_svn: u64,
    #[command(flatten)]
    host_data: HostDataArguments,
    /// The nonce with which a report was asked for (see docs/measurement.md).
    #[arg(long, value_name = "HEX", value_parser = nonce)]
    nonce: Option<Nonce>,
    /// The report data itself, 64 bytes.
    #[arg(long, value_name = "HEX", value_parser = bytes::<64>, conflicts_with = "nonce")]
    report_data: Option<[u8; 64]>,
    /// The guest policy must be this one [default: no debugging, no migration; the image's policy with --image].
    #[arg(long, value_name = "NUMBER", value_parser = number)]
    guest_policy: Option<u64>,
    /// Lowest TCB version, for each product line that will do:
    /// PRODUCT:bootloader=N,tee=N,snp=N,microcode=N (on Turin also fmc=N).
    #[arg(long, value_name = "TCB")]
    min_tcb: Vec<Floor>,
    /// Lowest security version of the guest, as its ID block says.
    #[arg(long, value_name = "SVN")]
    min_guest_svn: Option<u32>,
    /// SHA-384 of the key that must have signed the ID block.
    #[arg(long, value_name = "HEX", value_parser = bytes::<48>)]
    id_key_digest: Option<[u8; 48]>,
    /// SHA-384 of the key that must have signed the ID key.
    #[arg(long, value_name = "HEX", value_parser = bytes::<48>)]
    author_key_digest: Option<[u8; 48]>,
    /// TDX: a TCB status that will do; may be given several times.
    #[arg(long, value_name = "STATUS", default_value = "UpToDate")]
    tcb_status: Vec<String>,
    /// TDX: a security advisory that may be open on the platform; may be given several times.
    #[arg(long, value_name = "ID")]
    advisory: Vec<String>,
    /// Leave this unchecked; may be given several times.
    #[arg(long, value_name = "CHECK")]
    waive: Vec<Waiver>,
}

/// The bytes of a nonce.
#[derive(Debug, Clone)]
struct Nonce(Vec<u8>);

/// Demands with every file read and every digest computed.
#[derive(Debug)]
pub struct Demands {
    now: u64,
    /// Measurements that will do.
    pub measurements: Source,
    /// An endorsement that must hold.
    pub endorsement: Option<Trusted>,
    host_data: Expect<[u8; 32]>,
    report_data: Expect<[u8; 64]>,
    vmpl: Expect<u32>,
    policy: PolicyRule,
    floors: Expect<Vec<(evidence::tcb::Product, evidence::tcb::Tcb)>>,
    guest_svn: Expect<u32>,
    id_key_digest: Expect<[u8; 48]>,
    author_key_digest: Expect<[u8; 48]>,
    statuses: Vec<String>,
    advisories: Vec<String>,
    rtmr: Expect<[u8; 48]>,
}

/// Where acceptable measurements come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// From the command line.
    Listed(Vec<[u8; 48]>),
    /// From an endorsement alone.
    Endorsed,
    /// Any will do.
    Waived,
}

impl Source {
    /// The source when an endorsement has been verified: its measurement, or none if it does not hold.
    pub fn with_endorsed(self, measurement: Option<[u8; 48]>) -> Self {
        match self {
            Self::Endorsed => Self::Listed(measurement.into_iter().collect()),
            other => other,
        }
    }

    fn demand(&self) -> Expect<Vec<[u8; 48]>> {
        match self {
            Self::Listed(measurements) => Expect::Is(measurements.clone()),
            Self::Endorsed => Expect::Is(Vec::new()),
            Self::Waived => Expect::Waived,
        }
    }
}

/// An endorsement and who is trusted to make one.
#[derive(Debug)]
pub struct Trusted {
    /// The endorsement.
    pub bytes: Vec<u8>,
    issuer: Issuer,
    feed: String,
    min_svn: u64,
    now: u64,
}

impl Trusted {
    /// What it must say, for a report of this measurement.
    pub fn expectations(&self, measurement: [u8; 48]) -> endorsement::Expectations {
        endorsement::Expectations {
            now: Expect::Is(self.now),
            issuer: self.issuer.clone(),
            feed: self.feed.clone(),
            min_svn: self.min_svn,
            measurement: Expect::Is(vec![measurement]),
        }
    }
}

impl DemandArguments {
    /// Reads what the arguments name.
    pub fn resolve(&self, now: u64) -> Result<Demands> {
        let (measured, policies) = self.of_images()?;
        let measurements = [self.measurement.clone(), measured].concat();
        let measurements = match (measurements.is_empty(), &self.endorsement) {
            (false, _) => Source::Listed(measurements),
            (true, Some(_)) => Source::Endorsed,
            (true, None) => {
                self.must_waive(Waiver::Measurement, "--measurement, --image or --endorsement")?;
                Source::Waived
            }
        };
        let report_data =
            self.report_data.or(self.nonce.as_ref().map(|Nonce(nonce)| evidence::report_data(nonce)));
        Ok(Demands {
            now,
            measurements,
            endorsement: self.trusted(now)?,
            host_data: self.demand(
                self.host_data.resolve()?.map(|HostData(bytes)| bytes),
                Waiver::HostData,
                "--host-data or --policy",
            )?,
            report_data: self.demand(report_data, Waiver::ReportData, "--nonce or --report-data")?,
            vmpl: if self.waives(Waiver::Vmpl) { Expect::Waived } else { Expect::Is(0) },
            policy: self.policy_rule(&policies)?,
            floors: optional(
                Some(self.min_tcb.iter().map(|Floor(product, tcb)| (*product, *tcb)).collect::<Vec<_>>())
                    .filter(|floors| !floors.is_empty()),
            ),
            guest_svn: optional(self.min_guest_svn),
            id_key_digest: optional(self.id_key_digest),
            author_key_digest: optional(self.author_key_digest),
            statuses: self.tcb_status.clone(),
            advisories: self.advisory.clone(),
            rtmr: if self.waives(Waiver::Rtmrs) { Expect::Waived } else { Expect::Is([0; 48]) },
        })
    }

    fn waives(&self, what: Waiver) -> bool {
        self.waive.contains(&what)
    }

    fn must_waive(&self, what: Waiver, flags: &str) -> Result<()> {
        let name = what.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        ensure!(self.waives(what), "{name}: expected {flags}, or --waive {name}, found neither");
        Ok(())
    }

    fn demand<T>(&self, value: Option<T>, what: Waiver, flags: &str) -> Result<Expect<T>> {
        match value {
            Some(value) => Ok(Expect::Is(value)),
            None => self.must_waive(what, flags).map(|()| Expect::Waived),
        }
    }

    /// The measurements and guest policies of the images.
    fn of_images(&self) -> Result<(Vec<[u8; 48]>, Vec<u64>)> {
        let (mut measurements, mut policies) = (Vec::new(), Vec::new());
        let Vcpus(range) = &self.vcpus;
        for path in &self.image {
            let file = ImageFile::read(path)?;
            for image in &file.images {
                let Some(tee) = tee_of(image)? else { continue };
                if self.tee.is_some_and(|wanted| Tee::from(wanted) != tee) {
                    continue;
                }
                check_limit(image, *range.end())?;
                let backend = if tee == Tee::Tdx { Loader::Kvm } else { self.backend };
                let digests = Profile::ours(tee, backend.into()).digests(image, *range.end())?;
                let wanted = (1..).zip(digests).filter(|(vcpus, _)| range.contains(vcpus));
                measurements.extend(wanted.map(|(_, digest)| digest.0));
                policies.extend(image.guest_policy);
            }
        }
        if !self.image.is_empty() && measurements.is_empty() {
            bail!("--image: expected an image for an isolation that is measured, found none");
        }
        Ok((measurements, policies))
    }

    fn policy_rule(&self, policies: &[u64]) -> Result<PolicyRule> {
        let of_images = match policies {
            [] => None,
            [first, rest @ ..] => {
                ensure!(
                    self.guest_policy.is_some() || rest.iter().all(|policy| policy == first),
                    "--image: expected images of one guest policy, or --guest-policy, found several"
                );
                Some(*first)
            }
        };
        let exact = optional(self.guest_policy.or(of_images).map(GuestPolicy));
        Ok(PolicyRule { exact, ..PolicyRule::no_debug_no_migration() })
    }

    fn trusted(&self, now: u64) -> Result<Option<Trusted>> {
        let (Some(path), Some(issuer), Some(feed)) = (&self.endorsement, &self.issuer, &self.feed) else {
            return Ok(None);
        };
        let bytes = read(path, u64::try_from(endorsement::ENDORSEMENT_MAX)?)?;
        let (issuer, feed, min_svn) = (issuer.clone(), feed.clone(), self.min_endorsed_svn);
        Ok(Some(Trusted { bytes, issuer, feed, min_svn, now }))
    }
}

impl Demands {
    /// The demands on an SEV-SNP report.
    pub fn snp(
        &self,
        allow_sim: bool,
        lists: Vec<RevocationList>,
        measurements: &Source,
    ) -> snp::Expectations {
        snp::Expectations {
            now: self.now,
            allow_sim,
            excluded_products: Vec::new(),
            revocation: if lists.is_empty() { Expect::Waived } else { Expect::Is(lists) },
            tcb_floor: self.floors.clone(),
            platform: Expect::Waived,
            vmpl: self.vmpl.clone(),
            policy: self.policy.clone(),
            measurement: measurements.demand(),
            guest_svn: self.guest_svn.clone(),
            id_key_digest: self.id_key_digest.clone(),
            author_key_digest: self.author_key_digest.clone(),
            host_data: self.host_data.clone(),
            report_data: self.report_data.clone(),
        }
    }

    /// The demands on a TDX quote.
    pub fn tdx(&self) -> tdx::Expectations {
        tdx::Expectations {
            now: self.now,
            statuses: self.statuses.clone(),
            advisories: Expect::Is(self.advisories.clone()),
            module_svn: Expect::Waived,
            xfam: Expect::Waived,
            mrtd: self.measurements.demand(),
            mr_config_id: match &self.host_data {
                Expect::Is(host_data) => Expect::Is(tdx::mr_config_id(host_data)),
                Expect::Waived => Expect::Waived,
            },
            mr_owner: Expect::Is([0; 48]),
            mr_owner_config: Expect::Is([0; 48]),
            rtmrs: std::array::from_fn(|_| self.rtmr.clone()),
            report_data: self.report_data.clone(),
        }
    }
}

fn optional<T>(value: Option<T>) -> Expect<T> {
    value.map_or(Expect::Waived, Expect::Is)
}

fn nonce(text: &str) -> Result<Nonce, String> {
    let bytes = hex::decode(text).map_err(|_| "expected hexadecimal digits".to_owned())?;
    let most = evidence::NONCE_MAX;
    if bytes.len() > most {
        Err(format!("expected at most {most} bytes, found {}", bytes.len()))
    } else {
        Ok(Nonce(bytes))
    }
}
