//! Writes the generated CRD YAML: `cargo crdgen` rewrites `crds/yaml/kvcluster.yaml` and the chart's copy.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let yaml = match kvcluster_crds::v1alpha1::crd_yaml() {
        Ok(yaml) => yaml,
        Err(error) => {
            eprintln!("the CRD does not serialise: {error}");
            return ExitCode::FAILURE;
        }
    };
    for place in [
        "yaml/kvcluster.yaml",
        "../charts/kvcluster/crds/kvcluster.yaml",
    ] {
        let path = root.join(place);
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(error) = made.and_then(|()| std::fs::write(&path, &yaml)) {
            eprintln!("cannot write {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        println!("wrote {}", path.display());
    }
    ExitCode::SUCCESS
}
