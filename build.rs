//! Compiles the protos.
fn main() {
    let protos: Vec<_> = std::fs::read_dir("proto/shipreid/v1").unwrap().map(|e| e.unwrap().path()).collect();
    let set = protox::compile(&protos, ["proto"]).unwrap();
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap());
    use tonic_prost_build::*;
    let _ = &set;
    std::fs::write(out.join("descriptor.bin"), protox::prost::Message::encode_to_vec(&set)).unwrap();
    configure().bytes(".").compile_fds(set).unwrap();
}
