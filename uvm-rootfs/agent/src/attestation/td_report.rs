#![allow(unsafe_code, reason = "the TDX guest driver speaks by ioctl alone")]
//! TD reports: what the TDX module itself says about this guest (Intel TDX module ABI, TDREPORT_STRUCT).
//!
//! The kernel's driver asks the module by TDCALL[TDG.MR.REPORT]. No byte of the answer passes through the host, so
//! the guest may believe it as it is, which a quote would not allow.
//!
//! Unsafe: one `ioctl` on a structure of ours, which the kernel reads and fills within its size.

use std::fs::File;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use super::EvidenceError;

const DEVICE: &str = "/dev/tdx_guest";
const PROVIDER: &str = "tdx_guest";

/// A TDREPORT_STRUCT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdReport(pub [u8; Self::BYTES]);

impl TdReport {
    /// Size in bytes.
    pub const BYTES: usize = 1024;
    /// REPORTTYPE.TYPE of a TDX report.
    pub const TYPE_TDX: u8 = 0x81;

    /// REPORTMACSTRUCT.REPORTTYPE.TYPE.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.0[0]
    }

    /// REPORTMACSTRUCT.REPORTDATA.
    #[must_use]
    pub fn report_data(&self) -> &[u8] {
        &self.0[128..192]
    }

    /// TDINFO_STRUCT.ATTRIBUTES; the structure begins at 512.
    #[must_use]
    pub fn attributes(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[512..520]);
        u64::from_le_bytes(bytes)
    }

    /// TDINFO_STRUCT.MRCONFIGID.
    #[must_use]
    pub fn mr_config_id(&self) -> &[u8] {
        &self.0[576..624]
    }
}

/// `struct tdx_report_req` of Linux's `tdx-guest.h`.
#[repr(C)]
struct Request {
    report_data: [u8; 64],
    report: [u8; TdReport::BYTES],
}

const GET_REPORT0: Opcode = opcode::read_write::<Request>(b'T', 1);

const _: () = {
    assert!(size_of::<Request>() == 1088);
    assert!(GET_REPORT0 == 0xc440_5401);
};

/// A fresh TD report over `report_data`.
///
/// # Errors
/// If the guest's kernel has no TDX driver, or the module refuses.
pub fn take(report_data: &[u8; 64]) -> Result<TdReport, EvidenceError> {
    let device = File::options().read(true).write(true).open(DEVICE);
    let device = device.map_err(|error| EvidenceError::NoProvider {
        expected: PROVIDER,
        found: format!("no {DEVICE}: {error}"),
    })?;
    let mut request = Request { report_data: *report_data, report: [0; TdReport::BYTES] };
    // SAFETY: TDX_CMD_GET_REPORT0 takes a `tdx_report_req`, whose layout `Request` has.
    let command = unsafe { Updater::<GET_REPORT0, Request>::new(&mut request) };
    // SAFETY: the kernel reads and writes the structure within its size while `request` is borrowed.
    let result = unsafe { ioctl(&device, command) };
    result.map_err(|errno| EvidenceError::Io {
        provider: PROVIDER,
        what: "ask the TDX module for a TD report".into(),
        source: errno.into(),
    })?;
    Ok(TdReport(request.report))
}
