//! The node's machine: which accelerator, which devices, and the two processes that make it.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::{Context, Result, ensure};
use kvm_ioctls::Kvm;
use rustix::io::{FdFlags, fcntl_setfd};

use super::{NodeConfig, linux::NodeKernel, share};

/// How the node's processors are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// Hardware virtualization, which the node can use in its turn.
    Kvm,
    /// Emulation of a processor that has AMD SVM.
    Tcg,
}

impl Accelerator {
    /// Looks at this machine: hardware counts only when the node could nest in it. Gives the reason too.
    #[must_use]
    pub fn probe() -> (Self, String) {
        match nested_virtualization() {
            Ok(()) => (Self::Kvm, "KVM, nested virtualization works".to_owned()),
            Err(reason) => (Self::Tcg, format!("TCG emulation ({reason:#})")),
        }
    }
}

fn nested_virtualization() -> Result<()> {
    let processor = fs::read_to_string("/proc/cpuinfo")?;
    let flags = processor.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let vendor = flags.split_whitespace().find_map(|flag| match flag {
        "vmx" => Some("kvm_intel"),
        "svm" => Some("kvm_amd"),
        _ => None,
    });
    let module = vendor.context("the processor offers no VMX or SVM")?;
    let parameter = format!("/sys/module/{module}/parameters/nested");
    let nested = fs::read_to_string(&parameter).with_context(|| format!("cannot read {parameter}"))?;
    ensure!(matches!(nested.trim(), "Y" | "1"), "{parameter} is {}", nested.trim());
    let kvm = Kvm::new().context("/dev/kvm does not open")?;
    let vm = kvm.create_vm().context("/dev/kvm makes no VM")?;
    vm.create_vcpu(0).context("/dev/kvm makes no vCPU")?;
    Ok(())
}

/// A running QEMU and its file server. Dropping it ends both.
pub struct Machine {
    qemu: Child,
    files: Child,
    console: PathBuf,
}

impl Machine {
    /// Starts the machine; gives the stream to its first process as well.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub fn start(
        config: &NodeConfig,
        kernel: &NodeKernel,
        accelerator: Accelerator,
        folder: &Path,
    ) -> Result<(Self, UnixStream)> {
        let console = folder.join("console.log");
        let root = folder.join("root");
        fs::create_dir_all(&root)?;

        // An abstract name leaves nothing behind in the file system, whatever ends us.
        let name = format!("uvm-node-{}", folder.display());
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)
            .context("cannot listen for the node's file system")?;
        inherit(&listener)?;
        let file_log = File::create(folder.join("virtiofsd.log"))?;
        let files = share::command(&root, &config.share, listener.as_raw_fd())?
            .stdin(Stdio::null())
            .stdout(file_log.try_clone()?)
            .stderr(file_log)
            .spawn()
            .context("cannot start the node's file server")?;

        let (ours, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        inherit(&theirs)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args(arguments(config, accelerator, &name, theirs.as_raw_fd()));
        command.arg("-kernel").arg(&kernel.image).arg("-append").arg(command_line()?);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        let log = File::create(folder.join("qemu.log"))?;
        let qemu = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let mut machine = match qemu {
            Ok(qemu) => Self { qemu, files, console },
            Err(error) => {
                end(files);
                return Err(error).context("cannot start QEMU");
            }
        };
        if let Some(status) = machine.qemu.try_wait()? {
            anyhow::bail!("QEMU: {status}; see {}", folder.join("qemu.log").display());
        }
        Ok((machine, ours))
    }

    /// What the node's kernel printed.
    #[must_use]
    pub fn console(&self) -> &Path {
        &self.console
    }

    /// Waits until QEMU ends by itself.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.qemu.wait()?)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in [&mut self.qemu, &mut self.files] {
            // Ended already is as good; neither failure leaves anything more to be done.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn end(mut child: Child) {
    // See `Machine::drop`.
    let _ = child.kill();
    let _ = child.wait();
}

/// Lets the next process keep `descriptor`.
fn inherit(descriptor: impl AsFd) -> Result<()> {
    fcntl_setfd(descriptor, FdFlags::empty()).context("cannot pass a descriptor on")
}

fn arguments(config: &NodeConfig, accelerator: Accelerator, files: &str, port: i32) -> Vec<String> {
    let NodeConfig { memory_mib, cpus, .. } = config;
    let mut list: Vec<String> = match accelerator {
        Accelerator::Kvm => vec!["-accel".into(), "kvm".into(), "-cpu".into(), "host".into()],
        Accelerator::Tcg => {
            vec!["-accel".into(), "tcg,thread=multi,tb-size=1024".into(), "-cpu".into(), "max,+svm".into()]
        }
    };
    let machine = [
        format!("-smp {cpus}"),
        format!("-m {memory_mib}"),
        "-M q35,memory-backend=mem,usb=off,vmport=off".to_owned(),
        format!("-object memory-backend-memfd,id=mem,size={memory_mib}M,share=on"),
        "-nodefaults -no-user-config -no-reboot -display none -vga none".to_owned(),
    ];
    list.extend(machine.iter().flat_map(|part| part.split(' ').map(str::to_owned)));
    list.extend([
        "-chardev".into(),
        format!("socket,id=files,path={},abstract=on", files.replace(',', ",,")),
    ]);
    list.extend(["-device".into(), "vhost-user-fs-pci,chardev=files,tag=rootfs".into()]);
    list.extend(["-chardev".into(), format!("socket,id=port,fd={port}"), "-device".into()]);
    list.extend(["virtio-serial-pci".into(), "-device".into()]);
    list.push(format!("virtserialport,chardev=port,nr=1,name={}", super::PORT_NAME));
    list.extend(["-device".into(), "virtio-rng-pci".into()]);
    list
}

/// The kernel's command line: this very program is the node's first process.
fn command_line() -> Result<String> {
    let program = std::env::current_exe()?;
    let program = program.to_str().filter(|path| !path.contains([' ', '"', '\t'])).with_context(|| {
        format!("the kernel cannot start {}: expected a path without blanks and quotes", program.display())
    })?;
    // The node is a test bed, and emulated: mitigations and address randomisation only make it slower.
    Ok(format!(
        "console=ttyS0 quiet panic=-1 reboot=t mitigations=off nokaslr tsc=reliable no_timer_check \
         random.trust_cpu=on root=rootfs rootfstype=virtiofs rw init={program} -- node-init"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_the_size_asked_for() {
        let config = NodeConfig { memory_mib: 1234, cpus: 3, ..NodeConfig::default() };
        let list = arguments(&config, Accelerator::Tcg, "a,b", 7).join(" ");
        assert!(list.contains("-smp 3 -m 1234 ") && list.contains("size=1234M"), "{list}");
        assert!(list.contains("path=a,,b,abstract=on") && list.contains("fd=7"), "{list}");
        assert!(!list.contains("-cpu host"), "{list}");
    }
}
