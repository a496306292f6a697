//! Compiles the protos, in pure Rust, and keeps their descriptors for reflection; with libtorch, also compiles the
//! shims over it and tells the binaries where it lies.

use std::error::Error;
use std::path::{Path, PathBuf};

use protox::prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    name_build()?;
    compile_protos()?;
    #[cfg(feature = "torch")]
    torch::compile_shims_and_link()?;
    Ok(())
}

/// The version, and the commit where whoever builds knows it: `0.1.0+1e24c7f0a1b2`. It is answered in a header.
fn name_build() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed=SHIPREID_COMMIT");
    let version = std::env::var("CARGO_PKG_VERSION")?;
    let commit = std::env::var("SHIPREID_COMMIT").unwrap_or_default();
    let is_hash = !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    let build = if is_hash { format!("{version}+{commit}") } else { version };
    println!("cargo:rustc-env=SHIPREID_BUILD={build}");
    Ok(())
}

fn compile_protos() -> Result<(), Box<dyn Error>> {
    let folder = Path::new("proto/shipreid/v1");
    println!("cargo:rerun-if-changed={}", folder.display());
    let protos = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<PathBuf>>>()?;
    let descriptors = protox::compile(&protos, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptor.bin"), descriptors.encode_to_vec())?;
    // What is fuzzed needs the messages only.
    let with_services = std::env::var_os("CARGO_CFG_FUZZING").is_none();
    let protos = tonic_prost_build::configure().build_client(with_services).build_server(with_services);
    protos.bytes(".").compile_fds(descriptors)?;
    Ok(())
}

#[cfg(feature = "torch")]
mod torch {
    use std::error::Error;
    use std::path::{Path, PathBuf};

    const SOURCES: [&str; 6] = [
        "src/distributed/nccl.cpp",
        "src/distributed/shim.cpp",
        "src/model/shim.cpp",
        "src/model/tiles/bf16x3.cpp",
        "src/model/tiles/tiles.cpp",
        "src/model/training/training.cpp",
    ];
    const HEADERS: [&str; 3] = ["src/distributed/nccl.h", "src/model/guarded.h", "src/model/tiles/bf16x3.h"];
    /// Stands for gloo's headers, which libtorch lacks.
    const GLOO: &str = "src/distributed/gloo";

    pub fn compile_shims_and_link() -> Result<(), Box<dyn Error>> {
        let given = PathBuf::from(std::env::var("DEP_TCH_LIBTORCH_LIB")?);
        let library = given.canonicalize().map_err(|cause| {
            format!("no libtorch at {}: {cause}; `make setup` fetches it", given.display())
        })?;
        let include = library.join("../include");
        for file in SOURCES.iter().chain(&HEADERS).chain([&GLOO]) {
            println!("cargo:rerun-if-changed={file}");
        }
        cc::Build::new()
            .cpp(true)
            .std("c++20")
            .files(SOURCES)
            // Tests run these loops as well, and intrinsics are slow unless they are inlined.
            .opt_level(3)
            // ATen's `parallel_for` is inline, and runs on one thread without it.
            .flag("-fopenmp")
            // GCC 12 says it of its own intrinsics.
            .flag_if_supported("-Wno-maybe-uninitialized")
            .define("USE_C10D_GLOO", None)
            .include("src/distributed")
            .flag("-isystem")
            .flag(&include)
            .flag("-isystem")
            .flag(include.join("torch/csrc/api/include"))
            .compile("shipreid_shims");
        // The one that libtorch brings, when the program runs.
        println!("cargo:rustc-link-lib=gomp");
        // Where it was built, and where the container and packages put it.
        for place in [library.as_path(), Path::new("$ORIGIN/../lib/shipreid/torch/lib")] {
            println!("cargo:rustc-link-arg=-Wl,-rpath,{}", place.display());
        }
        Ok(())
    }
}
