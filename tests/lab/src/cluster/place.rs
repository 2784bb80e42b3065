//! Namespaces and volumes: what is there before anything is installed.

use std::path::Path;

use anyhow::Result;

use crate::cluster::Cluster;
use crate::shell;

/// Names the volumes' class.
pub const STORAGE_CLASS: &str = "lab";
/// Lets pods stand where the volumes are: on the control plane's node.
pub const TOLERATION: &str =
    "tolerations[0].key=node-role.kubernetes.io/control-plane,tolerations[0].effect=NoSchedule";

const PLACE: &str = include_str!("../../recipes/place.yaml");
const FOLDERS: [&str; 2] = [
    "/var/lib/kvcluster-dev/kafka",
    "/var/lib/kvcluster-dev/postgres",
];

impl Cluster {
    /// Makes them, with the volumes on `node`; what is there stays.
    pub fn make_place(&self, node: &str, log: &Path) -> Result<()> {
        let make = [&["exec", node, "mkdir", "-p"][..], &FOLDERS].concat();
        shell::run_logged(&mut self.engine.docker(&make), log)?;
        let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        shell::output_of_input(&mut self.kubectl(&apply), &manifest(node)).map(drop)
    }
}

fn manifest(node: &str) -> String {
    PLACE.replace("@NODE@", node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_volumes_are_on_the_node_in_the_folders_that_are_made() {
        let manifest = manifest("here");
        assert_eq!(
            manifest.matches(r#"values: ["here"]"#).count(),
            FOLDERS.len()
        );
        for folder in FOLDERS {
            assert_eq!(manifest.matches(&format!("path: {folder}}}")).count(), 1);
        }
        assert!(!manifest.contains('@'));
    }
}
