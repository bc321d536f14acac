//! A folder with inputs, and the program run in it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::inputs;

/// A folder with a kernel, a boot stub and whatever commands write.
pub struct Bench(TempDir);

/// What a run of the program has said.
pub struct Said {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }

    #[track_caller]
    pub fn has(&self, texts: &[&str]) {
        for text in texts {
            assert!(self.out.contains(text), "no {text:?} in:\n{}{}", self.out, self.err);
        }
    }

    /// The program refuses an argument or a file, and says why.
    #[track_caller]
    pub fn refuses(&self, why: &str) {
        assert_eq!(self.status, 2, "{}{}", self.out, self.err);
        assert!(self.err.contains(why), "no {why:?} in:\n{}", self.err);
    }
}

impl Bench {
    pub fn new() -> Self {
        let bench = Self(TempDir::new().unwrap());
        bench.write("kernel", &inputs::kernel(40_000));
        bench.write("stub", &inputs::stub(&[0xF4; 5000]));
        bench
    }

    /// Builds an image of the standard inputs.
    pub fn build(&self, name: &str, recipe: &str) {
        self.write(&format!("{name}.toml"), recipe.as_bytes());
        let (recipe, out) = (format!("{name}.toml"), format!("{name}.igvm"));
        let said = self.run(&["build", &recipe, "--kernel", "kernel", "--stub", "stub", "--out", &out]);
        assert_eq!(said.status, 0, "{}", said.err);
    }

    pub fn run(&self, arguments: &[&str]) -> Said {
        let program = Command::new(env!("CARGO_BIN_EXE_uvm-launch"));
        self.finish(program, arguments)
    }

    fn finish(&self, mut program: Command, arguments: &[&str]) -> Said {
        let output = program.args(arguments).current_dir(self.0.path()).output().unwrap();
        Said {
            status: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// The digest of `image` with this many virtual CPUs.
    pub fn digest(&self, image: &str, vcpus: u32) -> [u8; 48] {
        let said = self.run(&["measure", image, "--vcpus", &vcpus.to_string(), "--json"]);
        let json = said.json();
        let text = json["launches"][0]["digests"][0]["digest"].as_str().unwrap();
        hex::decode(text).unwrap().try_into().unwrap()
    }
}

/// A recipe for these isolations.
pub fn recipe(tees: &str) -> String {
    format!("command_line = 'quiet root=/dev/dm-0'\nmax_vcpus = 4\ntees = [{tees}]\n")
}
