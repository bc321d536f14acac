//! Links the program at its fixed address, without an operating system's start files.

fn main() {
    println!("cargo:rerun-if-changed=stub.ld");
    println!("cargo:rustc-check-cfg=cfg(sha2_backend, values(\"soft\"))");
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let page_aligned = "-Wl,-z,max-page-size=4096";
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", page_aligned]
    {
        println!("cargo:rustc-link-arg-bin=boot-stub={argument}");
    }
    println!("cargo:rustc-link-arg-bin=boot-stub=-Wl,-T,{dir}/stub.ld");
}
