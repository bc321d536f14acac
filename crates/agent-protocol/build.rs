//! Compiles the `.proto` files to messages and to ttrpc clients and services, without `protoc`.

use std::path::Path;

use ttrpc_codegen::{Codegen, Customize};

/// The generated files. Their own `mod.rs` opens with an inner attribute, which `include!` does not admit.
const MODULES: [&str; 10] = [
    "agent",
    "agent_ttrpc",
    "events",
    "events_ttrpc",
    "evidence",
    "evidence_ttrpc",
    "health",
    "health_ttrpc",
    "oci",
    "types",
];

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=protos");
    let out = std::env::var("OUT_DIR").map_err(std::io::Error::other)?;
    Codegen::new()
        .out_dir(&out)
        .include("protos")
        .inputs([
            "protos/agent.proto",
            "protos/events.proto",
            "protos/evidence.proto",
            "protos/health.proto",
            "protos/oci.proto",
            "protos/types.proto",
        ])
        .rust_protobuf()
        .customize(Customize { async_all: true, ..Default::default() })
        .run()?;
    let modules: String = MODULES.iter().map(|name| format!("pub mod {name};\n")).collect();
    std::fs::write(Path::new(&out).join("modules.rs"), modules)
}
