//! Links the program at its fixed address, without an operating system's start files.

fn main() {
    println!("cargo:rerun-if-changed=stub.ld");
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"] {
        println!("cargo:rustc-link-arg-bin=boot-stub={argument}");
    }
    println!("cargo:rustc-link-arg-bin=boot-stub=-Wl,-T,{dir}/stub.ld");
}
