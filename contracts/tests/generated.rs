//! The checked-in Rust of the `.proto` files is what they generate now. `UPDATE=1` writes it again.

use std::{env, fs, path::Path};

const PROTOS: [&str; 3] = ["batch_confirmed", "job_event", "usage_recorded"];
const HEADER: &str =
    "//! Generated from `proto/jobseal/v1` by `tests/generated.rs`; do not edit.\n\n";

#[test]
fn the_protobuf_types_are_those_of_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = PROTOS.map(|name| format!("jobseal/v1/{name}.proto"));
    let descriptors = protox::compile(files, [root.join("proto")]).unwrap();
    let out = env::temp_dir().join(format!("jobseal-contracts-{}", std::process::id()));
    fs::create_dir_all(&out).unwrap();
    prost_build::Config::new()
        .out_dir(&out)
        .compile_fds(descriptors)
        .unwrap();
    let generated = fs::read_to_string(out.join("jobseal.v1.rs")).unwrap();
    fs::remove_dir_all(&out).unwrap();

    let generated = format!("{HEADER}{generated}");
    let path = root.join("src/gen/jobseal.v1.rs");
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &generated).unwrap();
    }
    let checked_in = fs::read_to_string(&path).unwrap();
    assert!(
        checked_in == generated,
        "{} is stale: run with UPDATE=1",
        path.display()
    );
}
