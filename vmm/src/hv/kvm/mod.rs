//! KVM (Linux `Documentation/virt/kvm/api.rst`).
//!
//! The local APICs are the kernel's, the I/O APIC is ours (split irqchip): the arrangement that confidential
//! machines and other hypervisors need too.

mod cpuid;
mod isolated;
mod registers;
mod vcpu;
mod vm;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use launch::plan::Tee;

use super::seam::linux::Linux;
use super::{HvError, Settings};

pub use isolated::{IsolatedVm, Services};
pub use vcpu::KvmVcpu;
pub use vm::Vm;

fn call(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> HvError {
    move |errno| HvError::Call { call, source: io::Error::from_raw_os_error(errno.errno()) }
}

/// Where the host's operator puts the certificates of its secure processor, as the table that SEV-SNP guests get
/// with their reports (GHCB specification, section 4.1.8.1). Without it they get an empty one.
const CERTIFICATES: &str = "/etc/uvm/snp-certificates";
/// Most bytes of such a table.
const MAX_CERTIFICATES: u64 = 64 << 10;
/// Where Intel's quoting service listens.
const QUOTING_SERVICE: &str = "/var/run/tdx-qgs/qgs.socket";

/// Makes a machine.
///
/// # Errors
/// When KVM lacks something, or refuses.
pub fn open(settings: &Settings) -> Result<Arc<dyn super::Vm>, HvError> {
    let vcpus = settings.vcpus;
    Ok(match settings.tee {
        Tee::None | Tee::Sim => Arc::new(Vm::create(vcpus)?),
        Tee::Snp => {
            let services = Services { certificates: certificates()?.map(Arc::from), quoting: None };
            Arc::new(IsolatedVm::snp(Arc::new(Linux), vcpus, services)?)
        }
        Tee::Tdx => {
            let services = Services { certificates: None, quoting: Some(Path::new(QUOTING_SERVICE).into()) };
            Arc::new(IsolatedVm::tdx(Arc::new(Linux), vcpus, settings.host_data, services)?)
        }
    })
}

/// The operator's table of certificates, if there is one.
fn certificates() -> Result<Option<Vec<u8>>, HvError> {
    let file = match File::open(CERTIFICATES) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(HvError::Open { path: CERTIFICATES, source }),
    };
    let mut table = Vec::new();
    let read = file.take(MAX_CERTIFICATES + 1).read_to_end(&mut table);
    let found = read.map_err(|source| HvError::Open { path: CERTIFICATES, source })?;
    if found as u64 > MAX_CERTIFICATES {
        let problem = format!("{CERTIFICATES}: expected at most {MAX_CERTIFICATES} bytes, found more");
        return Err(HvError::Launch(problem));
    }
    Ok(Some(table))
}
