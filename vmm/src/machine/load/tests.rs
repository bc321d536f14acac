use launch::digest::LaunchDigest;
use launch::image::Platform;
use launch::plan::Tee;
use launch::snp::{Chain, PageType};

use super::*;

fn plan() -> LaunchPlan {
    LaunchPlan {
        image: "/i".into(),
        rootfs: "/r".into(),
        vcpus: 3,
        memory_mib: 64,
        tee: Tee::Snp,
        host_data: launch::plan::HostData::default(),
        hypervisor: launch::plan::Hypervisor::Auto,
        vsock: "/v".into(),
        console: None,
    }
}

fn page(gpa: u64, kind: PageKind) -> Page {
    Page { gpa, kind, data: vec![0x5A; 4096].into() }
}

fn area(gpa: u64, parameters: Vec<(u32, Parameter)>) -> ParameterArea {
    ParameterArea { gpa, bytes: 4096, parameters }
}

fn image(pages: Vec<Page>, parameters: Vec<ParameterArea>) -> Image {
    let vmsa = Box::new(snp::vmsa::base());
    let start = Start::Snp { gpa: 0x7000, vmsa };
    Image { platform: Platform::Snp, pages, parameters, start, guest_policy: Some(0x3_0000), id_block: None }
}

/// Three measured pages, the middle one of zeros, a parameter page after them, then a page on its own.
fn sample() -> Image {
    let parameters = Page { gpa: 0x5000, kind: PageKind::Unmeasured, data: Vec::new().into() };
    let zeros = Page { data: Vec::new().into(), ..page(0x3000, PageKind::Measured) };
    let pages = vec![
        page(0x2000, PageKind::Measured),
        zeros,
        page(0x4000, PageKind::Measured),
        page(WINDOW_BASE, PageKind::Shared),
        parameters,
        page(0x9000, PageKind::Measured),
        page(0x8000, PageKind::Measured),
        page(0x6000, PageKind::Secrets),
    ];
    image(pages, vec![area(0x5000, vec![(0, Parameter::VpCount), (64, Parameter::MemoryMap)])])
}

fn refusal(pages: Vec<Page>, parameters: Vec<ParameterArea>) -> Option<LoadError> {
    let ram = memory::ram(64).unwrap();
    Placement::new(&image(pages, parameters), &plan(), &ram).err()
}

#[test]
fn pages_and_parameters_land_where_they_should() {
    let (image, ram) = (sample(), memory::ram(64).unwrap());
    let placement = Placement::new(&image, &plan(), &ram).unwrap();
    placement.write_private().unwrap();
    let window = placement.window.unwrap();
    assert_eq!(window.read_obj::<u8>(GuestAddress(WINDOW_BASE + 0xFFF)).unwrap(), 0x5A);
    assert_eq!(ram.read_obj::<u8>(GuestAddress(0x2FFF)).unwrap(), 0x5A);
    assert_eq!(ram.read_obj::<u8>(GuestAddress(0x3000)).unwrap(), 0);
    assert_eq!(ram.read_obj::<u32>(GuestAddress(0x5000)).unwrap(), 3);
    assert_eq!(ram.read_obj::<u64>(GuestAddress(0x5048)).unwrap(), 64 * 256);
    assert_eq!(ram.read_obj::<u64>(GuestAddress(0x5060)).unwrap(), 0);
}

#[test]
fn neighbours_of_one_kind_make_one_run() {
    let (image, ram) = (sample(), memory::ram(64).unwrap());
    let runs = Placement::new(&image, &plan(), &ram).unwrap().runs(Backend::Kvm);
    let shape = runs.iter().map(|run| (run.gpa, run.page_type, run.bytes.len() / 4096));
    use PageType::{Normal, Secrets, Unmeasured};
    assert!(shape.eq([
        (0x2000, Normal, 3),
        (0x5000, Unmeasured, 1),
        (0x9000, Normal, 1),
        (0x8000, Normal, 1),
        (0x6000, Secrets, 1),
    ]));
    assert_eq!(runs[1].bytes[..4], [3, 0, 0, 0]);
    assert_eq!(runs[0].bytes[4096..8192], ZEROS);
}

#[test]
fn runs_by_address_have_the_save_area() {
    let (image, ram) = (sample(), memory::ram(64).unwrap());
    let runs = Placement::new(&image, &plan(), &ram).unwrap().runs(Backend::Mshv);
    assert!(runs.is_sorted_by_key(|run| run.gpa));
    let save_area = runs.iter().find(|run| run.page_type == PageType::Vmsa).unwrap();
    assert_eq!((save_area.gpa, save_area.bytes.len()), (0x7000, 4096));
    assert_eq!(runs.last().map(|run| (run.gpa, run.bytes.len())), Some((0x8000, 2 * 4096)));
}

/// What the runs hold is what the digest of the image is made of.
#[test]
fn runs_measure_as_the_image_does() {
    let (image, ram) = (sample(), memory::ram(64).unwrap());
    let runs = Placement::new(&image, &plan(), &ram).unwrap().runs(Backend::Mshv);
    let mut chain = Chain::default();
    for run in &runs {
        for (gpa, page) in (run.gpa..).step_by(4096).zip(run.bytes.chunks(4096)) {
            chain.extend(run.page_type, gpa, page);
        }
    }
    let expected: Vec<LaunchDigest> = snp::digests(&image, Backend::Mshv, 1, 0);
    assert_eq!([chain.digest()], *expected);
}

#[test]
fn misplaced_pages_are_refused() {
    let cases = [
        vec![page(64 << 20, PageKind::Measured)],
        vec![page(0x2001, PageKind::Measured)],
        vec![page(u64::MAX - 4095, PageKind::Measured)],
        vec![page(0x1000, PageKind::Shared)],
        vec![page(WINDOW_BASE + WINDOW_SIZE, PageKind::Shared)],
        vec![page(WINDOW_BASE, PageKind::Measured)],
        vec![page(0x1000, PageKind::Measured), page(0x1000, PageKind::Unmeasured)],
        // The save area's place.
        vec![page(0x7000, PageKind::Measured)],
    ];
    for pages in cases {
        let shown = format!("{:#x?}", pages.iter().map(|page| page.gpa).collect::<Vec<_>>());
        assert!(refusal(pages, Vec::new()).is_some(), "{shown}");
    }
}

#[test]
fn the_reset_page_is_the_guest_s_own_under_tdx_alone() {
    let ram = memory::ram(64).unwrap();
    let pages = vec![page(boot_abi::RESET_PAGE_GPA, PageKind::Measured)];
    let image = Image { start: Start::Reset, guest_policy: None, ..image(pages, Vec::new()) };
    for (tee, fits) in [(Tee::Tdx, true), (Tee::Snp, false)] {
        let private = memory::private(&ram, tee).unwrap();
        assert_eq!(Placement::new(&image, &plan(), &private).is_ok(), fits, "{tee}");
    }
}

#[test]
fn parameters_that_do_not_fit_are_refused() {
    let parameters = vec![area(0x5000, vec![(4093, Parameter::VpCount)])];
    assert!(matches!(refusal(Vec::new(), parameters), Some(LoadError::Parameter { needed: 4, .. })));
}
