//! CoreDNS without an upstream: in a lab that can pull nothing there is none, and asking it only costs time.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::shell;

/// Takes `forward` and `loop` out of the Corefile; CoreDNS reads it at its start.
pub fn drop_upstream(cluster: &Cluster) -> Result<()> {
    let get = [
        "-n",
        "kube-system",
        "get",
        "configmap",
        "coredns",
        "-o",
        "json",
    ];
    let map: Value = serde_json::from_str(&shell::output(&mut cluster.kubectl(&get))?)?;
    let corefile = map["data"]["Corefile"]
        .as_str()
        .context("CoreDNS has no Corefile")?;
    let patch = json!({ "data": { "Corefile": without_upstream(corefile) } }).to_string();
    let set = [
        "-n",
        "kube-system",
        "patch",
        "configmap",
        "coredns",
        "--type=merge",
        "-p",
        &patch,
    ];
    shell::output(&mut cluster.kubectl(&set))?;
    // Pods that started before the change read it within a minute or two; new ones at once.
    let restart = [
        "-n",
        "kube-system",
        "delete",
        "pod",
        "-l",
        "k8s-app=kube-dns",
        "--wait=false",
    ];
    shell::output(&mut cluster.kubectl(&restart)).map(drop)
}

fn without_upstream(corefile: &str) -> String {
    let mut kept = String::new();
    let mut skipped_depth = 0_usize;
    for line in corefile.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if skipped_depth == 0 && first != "forward" && first != "loop" {
            kept += line;
            kept.push('\n');
            continue;
        }
        skipped_depth += line.matches('{').count();
        skipped_depth = skipped_depth.saturating_sub(line.matches('}').count());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_and_loop_go_with_their_blocks() {
        let corefile = ".:53 {\n    errors\n    forward . /etc/resolv.conf {\n       max_concurrent 1000\n    }\n    cache 30 {\n       disable success cluster.local\n    }\n    loop\n    reload\n}\n";
        assert_eq!(
            without_upstream(corefile),
            ".:53 {\n    errors\n    cache 30 {\n       disable success cluster.local\n    }\n    reload\n}\n"
        );
        assert_eq!(
            without_upstream(".:53 {\n    forward . 1.1.1.1\n    errors\n}\n"),
            ".:53 {\n    errors\n}\n"
        );
    }
}
