//! The stub's side of the GHCB protocol against a hypervisor in software.

use boot_abi::ram::Range;

use super::hypervisor::Hypervisor;
use super::msr::{Reason, terminate};
use super::*;

const RAM: [Range; 2] =
    [Range { base: 0, end: 0x4000_0000 }, Range { base: 0x1_0000_0000, end: 0x1_4000_1000 }];
const LOADED: [LoadedRange; 4] = [
    LoadedRange { base: 0x10_0000, end: 0x14_7000 },
    NEVER_VALIDATED[0],
    NEVER_VALIDATED[1],
    LoadedRange { base: 0, end: 0 },
];

fn accept(hypervisor: &mut Hypervisor) -> Result<(), SnpError> {
    Guest::open(hypervisor)?.accept(Steps::new(&RAM, &LOADED))
}

/// All of RAM, less the loaded pages and the two that are never validated.
const PAGES: usize = 2 * 0x4_0000 + 1 - 0x47 - 2;

#[test]
fn the_channel_opens_and_carries_bytes() {
    let mut hypervisor = Hypervisor::default();
    let mut guest = Guest::open(&mut hypervisor).unwrap();
    guest.write_port(0x600, 3).unwrap();
    guest.write_port(0x600, 0xFF).unwrap();
    assert_eq!(hypervisor.shared, Some(GHCB_GPA));
    assert_eq!(hypervisor.ports, [(0x600, 3), (0x600, 0xFF)]);
}

#[test]
fn memory_is_taken_once_in_large_pages() {
    let mut hypervisor = Hypervisor::default();
    accept(&mut hypervisor).unwrap();
    assert_eq!(hypervisor.pages.len(), PAGES);
    assert!(hypervisor.pages.values().all(|times| *times == 1));
    assert!(!hypervisor.pages.contains_key(&GHCB_GPA));
    // 1023 large pages, and 440 small ones around the stub and at the end, 253 an exit.
    assert_eq!(hypervisor.exits, (1023u32 + 440).div_ceil(253));
}

#[test]
fn memory_assigned_in_small_pages_is_taken_once_too() {
    let mut hypervisor = Hypervisor { small_pages_only: true, ..Hypervisor::default() };
    accept(&mut hypervisor).unwrap();
    assert_eq!(hypervisor.pages.len(), PAGES);
    assert!(hypervisor.pages.values().all(|times| *times == 1));
}

#[test]
fn a_hypervisor_may_take_its_time_but_not_for_ever() {
    let mut slow = Hypervisor { entries_at_once: 7, ..Hypervisor::default() };
    accept(&mut slow).unwrap();
    assert_eq!(slow.pages.len(), PAGES);
    let mut stuck = Hypervisor { entries_at_once: 0, ..Hypervisor::default() };
    assert_eq!(accept(&mut stuck), Err(SnpError::Stuck(0)));
}

#[test]
fn a_page_that_was_validated_before_stops_the_start() {
    struct Replay<'a>(&'a mut Hypervisor);
    impl Processor for Replay<'_> {
        fn exchange(&mut self, request: u64) -> u64 {
            (&mut *self.0).exchange(request)
        }
        fn validate(&mut self, gpa: u64, size: PageSize) -> Validation {
            let answer = (&mut *self.0).validate(gpa, size);
            Validation { unchanged: answer.unchanged || gpa == 0x5000, ..answer }
        }
        fn read(&mut self, offset: u16) -> u64 {
            (&mut *self.0).read(offset)
        }
        fn write(&mut self, offset: u16, value: u64) {
            (&mut *self.0).write(offset, value);
        }
    }
    let mut hypervisor = Hypervisor::default();
    let mut guest = Guest::open(Replay(&mut hypervisor)).unwrap();
    assert_eq!(guest.accept(Steps::new(&RAM, &LOADED)), Err(SnpError::ValidatedTwice(0x5000)));
}

#[test]
fn a_page_that_cannot_be_validated_stops_the_start() {
    let mut hypervisor = Hypervisor::default();
    let mut guest = Guest::open(&mut hypervisor).unwrap();
    let step = Step { gpa: 0x20_0000, size: PageSize::Large };
    assert_eq!(guest.validate(step), Err(SnpError::Validate { gpa: 0x20_0000, code: 1 }));
}

#[test]
fn each_wrong_answer_has_its_error() {
    let wrong = |spoil: fn(&mut Hypervisor)| {
        let mut hypervisor = Hypervisor::default();
        spoil(&mut hypervisor);
        let error = Guest::open(&mut hypervisor).unwrap_err();
        assert!(hypervisor.ports.is_empty() && hypervisor.exits == 0);
        error
    };
    assert_eq!(wrong(|it| it.info = 1 << 48 | 1 << 32 | 51 << 24 | 1), SnpError::Protocol { min: 1, max: 1 });
    assert_eq!(wrong(|it| it.info = 4 << 48 | 3 << 32 | 51 << 24 | 1), SnpError::Protocol { min: 3, max: 4 });
    assert_eq!(wrong(|it| it.info = 2 << 48 | 1 << 32 | 47 << 24 | 1), SnpError::CBit(47));
    assert_eq!(wrong(|it| it.info = 0), SnpError::Answer { request: 2, found: 0 });
    assert_eq!(wrong(|it| it.features = 2 << 12 | 0x81), SnpError::Features(2));
    let request = 2 << 52 | GHCB_GPA | 0x14;
    assert_eq!(wrong(|it| it.page_state_error = 5), SnpError::Answer { request, found: 5 << 32 | 0x15 });
    let registered = wrong(|it| it.registered = Some(0x5000));
    assert_eq!(registered, SnpError::Answer { request: GHCB_GPA | 0x12, found: 0x5013 });
}

#[test]
fn a_failed_exit_is_an_error() {
    let mut hypervisor = Hypervisor { exit_info: (2, 6), ..Hypervisor::default() };
    let mut guest = Guest::open(&mut hypervisor).unwrap();
    assert_eq!(guest.write_port(1, 1), Err(SnpError::Exit { code: 0x7B, info1: 2, info2: 6 }));
    let mut hypervisor = Hypervisor { exit_info: (0, 1 << 32), ..Hypervisor::default() };
    let refused = accept(&mut hypervisor);
    assert_eq!(refused, Err(SnpError::Exit { code: 0x8000_0010, info1: 0, info2: 1 << 32 }));
}

#[test]
fn terminations_say_why() {
    let cases = [
        (SnpError::Protocol { min: 1, max: 1 }, 0x10),
        (SnpError::Features(0), 0x20),
        (SnpError::CBit(0), 0x00),
    ];
    for (error, expected) in cases {
        let mut hypervisor = Hypervisor::default();
        terminate(&mut &mut hypervisor, Reason::from(&error));
        // Reason set in bits 15:12 of the request, reason in 23:16.
        assert_eq!(hypervisor.terminated, Some(expected));
    }
}
