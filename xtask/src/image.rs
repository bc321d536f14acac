//! `cargo xtask image`: builds everything that a node needs to run utility VMs, into `target/uvm`.
//!
//! `bin/` has the programs; `uvm.igvm` with `uvm.json` (the measurement sidecar) and `rootfs.img` with
//! `rootfs.json` are the guest, `uvm-sim.igvm` is it for the simulation; `measured` images have the kernel in
//! measured pages; `debug/` has images with a console; `uvm.toml` and `uvm-sim.toml` are the shim's configurations.
//! `bzImage` and `boot-stub` are what images are made of, for those who build their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::progress::Progress;
use crate::{kernel, places, setup};

/// The target that programs without a shared C library are built for; naming it keeps their flags away from
/// build scripts.
pub const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The stub runs without an operating system: no red zone under interrupts, one fixed address. Nothing in it may
/// execute CPUID in a confidential guest, so the hash crate must not detect features.
pub const STUB_FLAGS: &str = "-C no-redzone=yes -C relocation-model=static --cfg sha2_backend=\"soft\"";
/// The agent is alone in its file system.
const AGENT_FLAGS: &str = "-C target-feature=+crt-static";

/// Kernel arguments of every image. A panic ends the machine at once and says so; nothing waits for devices
/// or clocks that the machine does not have.
const KERNEL_ARGUMENTS: &str =
    "panic=-1 reboot=acpi quiet loglevel=0 random.trust_cpu=on no_timer_check tsc=reliable init=/sbin/init";

/// The programs of the host.
const HOST_PROGRAMS: [&str; 6] =
    ["containerd-shim-uvm-v2", "igvm-builder", "uvm-launch", "uvm-rootfs", "uvm-snapshotter", "uvm-vmm"];

/// An image: its file in the product's folder, and what its recipe says beside the command line.
struct Image {
    file: &'static str,
    recipe: &'static str,
}

/// The images: for production, with and without a console, and for the simulation in both layouts.
const IMAGES: [Image; 6] = [
    Image { file: "uvm.igvm", recipe: "tees = ['none', 'snp', 'tdx']" },
    Image { file: "uvm-measured.igvm", recipe: "tees = ['snp']\nlayout = 'measured'" },
    Image { file: "uvm-sim.igvm", recipe: "tees = ['sim']" },
    Image { file: "uvm-sim-measured.igvm", recipe: "tees = ['sim']\nlayout = 'measured'" },
    Image { file: "debug/uvm.igvm", recipe: "tees = ['none', 'snp', 'tdx']\ndebug = true" },
    Image { file: "debug/uvm-sim.igvm", recipe: "tees = ['sim']\ndebug = true" },
];

/// Where the product is.
pub fn folder() -> PathBuf {
    places::target().join("uvm")
}

/// What the packer of the root file system tells.
#[derive(Deserialize)]
struct RootfsInfo {
    kernel_arguments: String,
}

/// Builds what has changed.
///
/// # Errors
/// When a part does not build; its own output says why.
pub fn build() -> Result<PathBuf> {
    setup::ensure_all()?;
    let kernel = kernel::build()?;
    let out = folder();
    fs::create_dir_all(out.join("bin"))?;
    fs::create_dir_all(out.join("debug"))?;

    let release = places::target().join("release");
    let packages =
        ["shim", "igvm-builder", "snapshotter", "vmm", "uvm-rootfs"].map(|name| format!("--package={name}"));
    cargo("host programs", &[&packages[..], &["--release".into()]].concat(), "", None)?;
    for program in HOST_PROGRAMS {
        install(&release.join(program), &out.join("bin").join(program))?;
    }
    let guest = places::target().join("guest");
    cargo("agent", &guest_build("uvm-agent", "guest"), AGENT_FLAGS, Some(&guest))?;
    let stub = places::target().join("stub");
    let mut stub_build = guest_build("boot-stub", "stub").to_vec();
    stub_build.push("--features=program".into());
    cargo("boot stub", &stub_build, STUB_FLAGS, Some(&stub))?;

    let progress = Progress::start("image");
    let bin = out.join("bin");
    let agent = guest.join(TRIPLE).join("guest/uvm-agent");
    let (rootfs, info) = (out.join("rootfs.img"), out.join("rootfs.json"));
    let mut pack = Command::new(bin.join("uvm-rootfs"));
    run(pack.arg("pack").arg("--agent").arg(agent).arg("--out").arg(&rootfs).arg("--info").arg(&info))?;
    let info: RootfsInfo = serde_json::from_slice(&fs::read(&info)?).context("rootfs.json")?;
    let stub = stub.join(TRIPLE).join("stub/boot-stub");
    install(&kernel.image, &out.join("bzImage"))?;
    install(&stub, &out.join("boot-stub"))?;
    for image in &IMAGES {
        let file = out.join(image.file);
        let recipe = file.with_extension("recipe.toml");
        let arguments = format!("{KERNEL_ARGUMENTS} {}", info.kernel_arguments);
        fs::write(&recipe, format!("command_line = '''{arguments}'''\n{}\n", image.recipe))?;
        let mut builder = Command::new(bin.join("igvm-builder"));
        builder.arg("build").arg("--recipe").arg(&recipe).arg("--kernel").arg(&kernel.image);
        run(builder.arg("--stub").arg(&stub).arg("--out").arg(&file))?;
    }
    fs::write(out.join("uvm.toml"), shim_configuration(&out, "uvm.igvm", "none"))?;
    fs::write(out.join("uvm-sim.toml"), shim_configuration(&out, "uvm-sim.igvm", "sim"))?;
    progress.finish(&format!("{} is up to date", out.display()));
    Ok(out)
}

fn guest_build(package: &str, profile: &str) -> [String; 3] {
    [format!("--package={package}"), format!("--target={TRIPLE}"), format!("--profile={profile}")]
}

fn shim_configuration(out: &Path, image: &str, tee: &str) -> String {
    let path = |name: &str| out.join(name).display().to_string();
    format!(
        "# Written by `cargo xtask image`.\nimage = \"{}\"\nrootfs = \"{}\"\nvmm = \"{}\"\ntee = \"{tee}\"\n\
         enable_annotations = [\"scratch_mib\"]\n\
         # Its users are emulated nodes, of which one may take minutes over a container.\n\
         boot_timeout_s = {timeout}\nrequest_timeout_s = {timeout}\n",
        path(image),
        path("rootfs.img"),
        path("bin/uvm-vmm"),
        timeout = 240,
    )
}

/// Builds packages for release, with a spinner and, on failure, cargo's own words.
fn cargo(name: &str, arguments: &[String], flags: &str, target: Option<&Path>) -> Result<()> {
    let progress = Progress::start(format!("build {name}"));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(places::repository()).args(["build", "--quiet", "--locked"]).args(arguments);
    cargo.arg("--target-dir").arg(target.map_or_else(places::target, Path::to_path_buf));
    cargo.env("LIBSECCOMP_LINK_TYPE", "static").env("LIBSECCOMP_LIB_PATH", "/usr/lib/x86_64-linux-gnu");
    if !flags.is_empty() {
        cargo.env("RUSTFLAGS", flags);
    }
    run(&mut cargo)?;
    progress.finish("done");
    Ok(())
}

/// Runs a command that says nothing when it succeeds.
fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{:?} failed ({}):\n{}",
            command.get_program(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Copies a program beside its place and renames it: one that runs is never written to.
fn install(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    fs::copy(from, &new).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::rename(&new, to).with_context(|| format!("cannot write {}", to.display()))
}
