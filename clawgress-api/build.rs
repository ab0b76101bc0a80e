//! Compiles the proto files in pure Rust: no protoc is needed on the machine.

const FILES: [&str; 2] = ["proto/clawgress.proto", "proto/workloadapi.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let files = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
