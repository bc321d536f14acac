//! The last step of a container's process: from `libcontainer`'s set-up to the user's program.

use std::os::unix::process::CommandExt;
use std::process::Command;

use libcontainer::seccomp::initialize_seccomp;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use oci_spec::runtime::{LinuxSeccomp, Process, Spec};

use super::executable;

/// Runs the program that the OCI process names.
#[derive(Clone)]
pub struct Workload {
    /// Filter to install first. `libcontainer` installs it itself for the init process, but leaves it out for
    /// further processes, which would then have more rights than the container.
    seccomp: Option<LinuxSeccomp>,
}

impl Workload {
    /// For a container's init process.
    pub fn init() -> Self {
        Self { seccomp: None }
    }

    /// For a further process in a container with this filter.
    pub fn exec(seccomp: Option<LinuxSeccomp>) -> Self {
        Self { seccomp }
    }

    fn confine(&self) -> Result<(), ExecutorError> {
        let Some(seccomp) = &self.seccomp else { return Ok(()) };
        // Capabilities are gone by now, so the kernel takes a filter only together with this bit.
        let other = |error: &dyn std::fmt::Display| {
            ExecutorError::Other(format!("install the seccomp filter: {error}"))
        };
        rustix::thread::set_no_new_privs(true).map_err(|error| other(&error))?;
        match initialize_seccomp(seccomp) {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(other(&"it asks for a listener, which this agent does not offer")),
            Err(error) => Err(other(&error)),
        }
    }
}

impl Executor for Workload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let args = arguments(spec.process().as_ref()).ok_or(ExecutorError::InvalidArg)?;
        let program = &args[0];
        // Looked up by now in the environment that `libcontainer` has set.
        let mut command = match std::env::var_os("PATH") {
            Some(_) => Command::new(program),
            None => Command::new(executable::check(program, None).map_err(ExecutorError::Other)?),
        };
        command.arg0(program).args(&args[1..]);
        self.confine()?;
        // `exec` restores the default signal mask and SIGPIPE, which Rust programs ignore.
        let error = command.exec();
        Err(ExecutorError::Other(format!("exec {program}: {error}")))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let process = spec.process().as_ref();
        let refuse = ExecutorValidationError::ArgValidationError;
        let args = arguments(process).ok_or_else(|| refuse("the process has no command".to_owned()))?;
        let env = process.and_then(|process| process.env().as_deref()).unwrap_or_default();
        let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
        executable::check(&args[0], path).map(|_| ()).map_err(refuse)
    }
}

fn arguments(process: Option<&Process>) -> Option<&[String]> {
    process?.args().as_deref().filter(|args| !args.is_empty())
}
