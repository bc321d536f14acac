//! A hypervisor in software: plays the other end of [`Processor`], keeps what it is told, and can be made to
//! misbehave.

extern crate std;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use boot_abi::GHCB_GPA;

use super::{Processor, Validation};
use crate::steps::PageSize;

#[derive(Debug)]
pub struct Hypervisor {
    /// Answers to SEV information and feature requests.
    pub info: u64,
    pub features: u64,
    pub page_state_error: u64,
    pub registered: Option<u64>,
    pub shared: Option<u64>,
    /// `SW_EXITINFO1` and `2` that every exit ends with.
    pub exit_info: (u64, u64),
    /// Most entries that one page-state change gets through.
    pub entries_at_once: u16,
    /// Whether memory is assigned in pages of 4 KiB whatever the guest asks for.
    pub small_pages_only: bool,
    pub terminated: Option<u64>,
    pub ports: Vec<(u16, u8)>,
    /// 4 KiB pages that were assigned, and how often each was validated.
    pub pages: BTreeMap<u64, u32>,
    pub exits: u32,
    pub page: Vec<u8>,
}

impl Default for Hypervisor {
    fn default() -> Self {
        Self {
            info: 2 << 48 | 1 << 32 | 51 << 24 | 0x001,
            features: 0x3 << 12 | 0x081,
            page_state_error: 0,
            registered: None,
            shared: None,
            exit_info: (0, 0),
            entries_at_once: u16::MAX,
            small_pages_only: false,
            terminated: None,
            ports: Vec::new(),
            pages: BTreeMap::new(),
            exits: 0,
            page: vec![0xAA; 4096],
        }
    }
}

impl Hypervisor {
    fn at(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.page[offset..offset + 8].try_into().unwrap())
    }

    fn put(&mut self, offset: usize, value: u64) {
        self.page[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// The fields that count, as KVM reads them.
    fn is_valid(&self, offset: usize) -> bool {
        let bit = offset / 8;
        self.page[0x3F0 + bit / 8] & 1 << (bit % 8) != 0
    }

    fn exit(&mut self) {
        assert_eq!(self.registered, Some(GHCB_GPA), "used before it was registered");
        assert_eq!(self.at(0xFF8), 2 << 16, "protocol version 2, usage 0");
        assert!([0x390, 0x398, 0x3A0].into_iter().all(|offset| self.is_valid(offset)));
        self.exits += 1;
        match self.at(0x390) {
            0x7B => self.port(),
            0x8000_0010 => self.page_states(),
            other => panic!("exit {other:#x}"),
        }
        let (info1, info2) = self.exit_info;
        self.put(0x398, info1);
        self.put(0x3A0, info2);
    }

    fn port(&mut self) {
        let info = self.at(0x398);
        assert_eq!(info & 0xFFFF, 0x210, "OUT of a byte with 64-bit addresses");
        assert!(self.is_valid(0x1F8) && !self.is_valid(0x3A8));
        self.ports.push(((info >> 16).try_into().unwrap(), self.at(0x1F8).try_into().unwrap()));
    }

    fn page_states(&mut self) {
        assert!(self.is_valid(0x3A8) && !self.is_valid(0x1F8));
        assert_eq!(self.at(0x3A8), GHCB_GPA + 0x800);
        let header = self.at(0x800);
        let (first, last) = (header & 0xFFFF, header >> 16 & 0xFFFF);
        assert!(header >> 32 == 0 && last < 253);
        let end = (last + 1).min(first + u64::from(self.entries_at_once));
        for index in first..end {
            let entry = self.at(0x808 + usize::try_from(index).unwrap() * 8);
            assert_eq!(entry >> 52 & 0xF, 1, "to private");
            assert_eq!((entry & 0xFFF, entry >> 57), (0, 0));
            let pages = if entry >> 56 & 1 == 1 { 512 } else { 1 };
            let gpa = entry & 0xF_FFFF_FFFF_F000;
            assert_eq!(gpa % (pages * 4096), 0);
            for page in 0..pages {
                let earlier = self.pages.insert(gpa + page * 4096, 0);
                assert_eq!(earlier, None, "asked for twice");
            }
        }
        self.put(0x800, end | last << 16);
    }
}

impl Processor for &mut Hypervisor {
    fn exchange(&mut self, request: u64) -> u64 {
        match request & 0xFFF {
            0 => {
                assert_eq!(request, GHCB_GPA);
                self.exit();
                request
            }
            0x002 => self.info,
            0x080 => self.features,
            0x014 => {
                assert_eq!(request >> 52, 2, "to shared");
                self.shared = Some(request & 0xF_FFFF_FFFF_F000);
                self.page_state_error << 32 | 0x015
            }
            0x012 => {
                self.registered = self.registered.or(Some(request & !0xFFF));
                self.registered.unwrap() | 0x013
            }
            0x100 => {
                self.terminated = Some(request >> 12);
                0
            }
            other => panic!("request {other:#x}"),
        }
    }

    fn validate(&mut self, gpa: u64, size: PageSize) -> Validation {
        if size == PageSize::Large && self.small_pages_only {
            return Validation { code: 6, unchanged: false };
        }
        let mut unchanged = false;
        for page in (gpa..gpa + size.bytes()).step_by(4096) {
            let Some(times) = self.pages.get_mut(&page) else { return Validation { code: 1, unchanged } };
            unchanged |= *times > 0;
            *times += 1;
        }
        Validation { code: 0, unchanged }
    }

    fn read(&mut self, offset: u16) -> u64 {
        assert_eq!(self.shared, Some(GHCB_GPA), "read before it was shared");
        self.at(offset.into())
    }

    fn write(&mut self, offset: u16, value: u64) {
        assert_eq!(self.shared, Some(GHCB_GPA), "written before it was shared");
        self.put(offset.into(), value);
    }
}
