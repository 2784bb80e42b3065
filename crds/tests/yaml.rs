//! The committed CRD is the generated one, and small enough for a plain `kubectl apply`.

use std::path::Path;

use kvcluster_crds::v1alpha1::crd_yaml;

/// `kubectl apply` keeps the whole object in an annotation; 60 KiB leaves room below its limit of 256 KiB for all of it.
const YAML_BYTES_MAX: usize = 60 * 1024;

#[test]
fn the_committed_yaml_is_current_and_small() {
    let generated = crd_yaml().expect("the CRD serialises");
    assert!(
        generated.len() <= YAML_BYTES_MAX,
        "{} bytes",
        generated.len()
    );
    for place in [
        "yaml/kvcluster.yaml",
        "../charts/kvcluster/crds/kvcluster.yaml",
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(place);
        let committed = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}; run `cargo crdgen`", path.display()));
        assert!(
            committed == generated,
            "{place} is stale: run `cargo crdgen`"
        );
    }
}
