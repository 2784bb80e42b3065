//! The charts, rendered by helm with several values and looked at: security of pods, rights, refused values.
//! Needs helm only: `$KVCLUSTER_HELM`, the PATH, or the lab's cache.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvcluster_suite::processes::{self, Ended};
use serde_json::Value;

/// Longest run of helm, which reads a few files.
const HELM_LIMIT: Duration = Duration::from_secs(30);
/// A helm that was built from source does not know by itself which Kubernetes there is.
const KUBERNETES: &str = "1.34.0";

fn helm(arguments: &[&str]) -> Result<Ended> {
    processes::run(Command::new(helm_program()?).args(arguments), HELM_LIMIT)
}

fn helm_program() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("KVCLUSTER_HELM") {
        return Ok(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = cache
        .or(home)
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("kvcluster");
    let cached = std::fs::read_dir(&cache)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let folders =
        std::env::split_paths(&path).chain(cached.flat_map(|path| [path.join("bin"), path]));
    let found = folders
        .map(|folder| folder.join("helm"))
        .find(|program| program.is_file());
    found.context(
        "helm is not found: install it, name it in KVCLUSTER_HELM, or let `cargo lab up` build it",
    )
}

fn chart(name: &str) -> String {
    format!("{}/../../charts/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn template(name: &str, values: &[&str]) -> Result<Ended> {
    let chart = chart(name);
    let mut arguments = vec![
        "template",
        "release",
        &chart,
        "--namespace",
        "home",
        "--kube-version",
        KUBERNETES,
    ];
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    helm(&arguments)
}

/// The rendered objects.
fn render(name: &str, values: &[&str]) -> Result<Vec<Value>> {
    let ended = template(name, values)?;
    ensure!(
        ended.success,
        "helm template {name} {values:?}: {}",
        ended.stderr
    );
    let documents = ended
        .stdout
        .split("\n---\n")
        .map(|text| text.trim_start_matches("---\n"));
    let is_object = |text: &&str| text.lines().any(|line| line.starts_with("kind:"));
    documents
        .filter(is_object)
        .map(|text| Ok(serde_yaml::from_str(text)?))
        .collect()
}

fn only<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found: Vec<_> = objects
        .iter()
        .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .collect();
    assert_eq!(
        found.len(),
        1,
        "one {kind} {name} among {:?}",
        names(objects)
    );
    found[0]
}

fn names(objects: &[Value]) -> Vec<String> {
    let name = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
    objects.iter().map(name).collect()
}

/// Every value set that is rendered below.
const DEV_VALUES: [&[&str]; 4] = [
    &[],
    &[
        "storage=emptyDir",
        "kafka.nodePort=0",
        "postgres.nodePort=0",
    ],
    &["storage=hostPath", "hostPath.node=worker"],
    &["pvc.storageClass=local", "tolerations[0].operator=Exists"],
];

fn all_renderings() -> Result<Vec<Vec<Value>>> {
    let mut all = vec![render("kvcluster", &[])?];
    all.push(render(
        "kvcluster",
        &[
            "watchNamespaces={one,two}",
            "replicas=2",
            "tolerations[0].operator=Exists",
        ],
    )?);
    for values in DEV_VALUES {
        all.push(render("kvcluster-dev", values)?);
    }
    Ok(all)
}

#[test]
fn lint_finds_nothing() -> Result<()> {
    for name in ["kvcluster", "kvcluster-dev"] {
        let ended = helm(&["lint", "--strict", &chart(name)])?;
        assert!(ended.success, "{}{}", ended.stdout, ended.stderr);
    }
    Ok(())
}

#[test]
fn every_object_is_labelled_and_has_its_namespace() -> Result<()> {
    for objects in all_renderings()? {
        for object in &objects {
            let labels = &object["metadata"]["labels"];
            for label in [
                "app.kubernetes.io/name",
                "app.kubernetes.io/instance",
                "helm.sh/chart",
            ] {
                assert!(labels[label].is_string(), "{object} has no label {label}");
            }
            let is_cluster_wide = object["kind"]
                .as_str()
                .unwrap_or_default()
                .starts_with("ClusterRole");
            assert_eq!(
                object["metadata"]["namespace"].is_null(),
                is_cluster_wide,
                "{object}"
            );
        }
    }
    Ok(())
}

/// The rules of Kubernetes' "restricted" pod security, and a file system that cannot be written. The one exception is the
/// container that gives a hostPath folder to its user.
#[test]
fn pods_are_restricted() -> Result<()> {
    let mut seen = 0;
    for objects in all_renderings()? {
        for pod in objects
            .iter()
            .map(|object| &object["spec"]["template"]["spec"])
        {
            if pod.is_null() {
                continue;
            }
            let security = &pod["securityContext"];
            assert_eq!(security["runAsNonRoot"], true);
            assert!(security["runAsUser"].as_u64().is_some_and(|user| user > 0));
            assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
            assert_eq!(pod["enableServiceLinks"], false);
            for flag in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod[flag].is_null(), "{flag}");
            }
            let containers = pod["containers"].as_array().context("containers")?;
            for container in containers {
                let security = &container["securityContext"];
                assert_eq!(security["allowPrivilegeEscalation"], false);
                assert_eq!(security["readOnlyRootFilesystem"], true);
                assert_eq!(
                    security["capabilities"],
                    serde_json::json!({"drop": ["ALL"]})
                );
                assert!(security["runAsUser"].is_null() && security["runAsNonRoot"].is_null());
                assert!(container["resources"]["limits"]["memory"].is_string());
                seen += 1;
            }
            for container in pod["initContainers"].as_array().into_iter().flatten() {
                assert_eq!(container["name"], "own-data");
                let capabilities = serde_json::json!({"drop": ["ALL"], "add": ["CHOWN"]});
                assert_eq!(container["securityContext"]["capabilities"], capabilities);
            }
        }
    }
    assert_eq!(
        seen, 10,
        "two operators, and Kafka and PostgreSQL four times"
    );
    Ok(())
}

fn rights(object: &Value) -> BTreeSet<String> {
    let texts = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(|text| text.as_str().map(str::to_owned))
            .collect()
    };
    let mut rights = BTreeSet::new();
    for rule in object["rules"].as_array().into_iter().flatten() {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    rights.insert(format!("{group}/{resource} {verb}"));
                }
            }
        }
    }
    rights
}

fn expected_rights() -> BTreeSet<String> {
    let table = [
        ("kvcluster.dev/kvclusters", "get list watch patch"),
        ("kvcluster.dev/kvclusters/status", "patch"),
        ("kvcluster.dev/kvclusters/finalizers", "update"),
        ("apps/statefulsets", "get list watch create patch delete"),
        ("/services", "get list watch create patch"),
        ("policy/poddisruptionbudgets", "get list watch create patch"),
        ("/secrets", "get create patch delete"),
        ("/pods", "list watch delete"),
        ("events.k8s.io/events", "create patch"),
    ];
    let rights = table
        .iter()
        .flat_map(|(what, verbs)| verbs.split(' ').map(move |verb| format!("{what} {verb}")));
    rights.collect()
}

/// Kubernetes nodes are read everywhere, by a role and a binding for nothing else.
fn assert_reads_nodes(objects: &[Value]) {
    let name = "home-release-kvcluster-operator-nodes";
    let verbs = ["get", "list", "watch"];
    let wanted = verbs.map(|verb| format!("/nodes {verb}"));
    assert_eq!(
        rights(only(objects, "ClusterRole", name)),
        BTreeSet::from(wanted)
    );
    let binding = only(objects, "ClusterRoleBinding", name);
    assert_eq!(binding["roleRef"]["name"], name);
    assert_eq!(binding["subjects"][0]["name"], "release-kvcluster-operator");
    assert_eq!(binding["subjects"][0]["namespace"], "home");
}

#[test]
fn the_operator_has_exactly_the_rights_it_uses() -> Result<()> {
    let objects = render("kvcluster", &[])?;
    let role = only(&objects, "ClusterRole", "home-release-kvcluster-operator");
    assert_eq!(rights(role), expected_rights());
    assert_reads_nodes(&objects);
    let own = only(&objects, "Role", "release-kvcluster-operator");
    let lease = [
        "coordination.k8s.io/leases create",
        "coordination.k8s.io/leases get",
        "coordination.k8s.io/leases update",
    ];
    let events = ["events.k8s.io/events create", "events.k8s.io/events patch"];
    assert_eq!(
        rights(own),
        lease
            .iter()
            .chain(&events)
            .map(|&right| right.to_owned())
            .collect()
    );
    Ok(())
}

#[test]
fn named_namespaces_leave_no_right_elsewhere() -> Result<()> {
    let everywhere = |objects: &[Value]| {
        let names = names(objects).into_iter();
        names.filter(|name| name.contains("ClusterRole")).count()
    };
    let blind = render(
        "kvcluster",
        &["watchNamespaces={one,two}", "nodeReader=false"],
    )?;
    assert_eq!(everywhere(&blind), 0, "{:?}", names(&blind));
    let objects = render("kvcluster", &["watchNamespaces={one,two}"])?;
    assert_eq!(everywhere(&objects), 2, "{:?}", names(&objects));
    assert_reads_nodes(&objects);
    for namespace in ["one", "two"] {
        let here: Vec<_> = objects
            .iter()
            .filter(|object| object["metadata"]["namespace"] == namespace)
            .collect();
        assert_eq!(here.len(), 2, "a Role and its binding in {namespace}");
        assert_eq!(rights(here[0]), expected_rights());
        assert_eq!(here[1]["subjects"][0]["namespace"], "home");
    }
    let deployment = only(&objects, "Deployment", "release-kvcluster-operator");
    let arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    assert!(
        arguments.contains("--watch-namespace=one") && arguments.contains("--watch-namespace=two")
    );
    Ok(())
}

#[test]
fn the_operator_is_replaced_without_a_surge() -> Result<()> {
    let objects = render(
        "kvcluster",
        &["nodeImage=here/node:1", "image=here/operator:2"],
    )?;
    let deployment = only(&objects, "Deployment", "release-kvcluster-operator");
    assert_eq!(
        deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"],
        0
    );
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "here/operator:2");
    assert!(
        container["args"]
            .to_string()
            .contains("--node-image=here/node:1")
    );
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        assert_eq!(container[probe]["httpGet"]["path"], path);
    }
    let port = &container["ports"][0];
    assert_eq!(
        (&port["name"], port["containerPort"].as_u64()),
        (&Value::from("health"), Some(8081))
    );
    let service = only(&objects, "Service", "release-kvcluster-operator-metrics");
    assert_eq!(
        service["spec"]["selector"],
        deployment["spec"]["selector"]["matchLabels"]
    );
    Ok(())
}

#[test]
fn the_operator_leaves_a_lost_kubernetes_node_soon() -> Result<()> {
    let own = |seconds: u64| {
        ["not-ready", "unreachable"].map(|taint| {
            serde_json::json!({
                "key": format!("node.kubernetes.io/{taint}"), "operator": "Exists",
                "effect": "NoExecute", "tolerationSeconds": seconds,
            })
        })
    };
    let tolerations = |values: &[&str]| -> Result<Value> {
        let objects = render("kvcluster", values)?;
        let deployment = only(&objects, "Deployment", "release-kvcluster-operator");
        Ok(deployment["spec"]["template"]["spec"]["tolerations"].clone())
    };
    assert_eq!(tolerations(&[])?, serde_json::json!(own(30)));
    let values = ["lostNodeSeconds=5", "tolerations[0].operator=Exists"];
    let [first, second] = own(5);
    assert_eq!(
        tolerations(&values)?,
        serde_json::json!([first, second, { "operator": "Exists" }]),
        "what is named comes on top"
    );
    Ok(())
}

#[test]
fn unknown_and_wrong_values_are_refused() -> Result<()> {
    let refused = [
        ("kvcluster", "replica=2"),
        ("kvcluster", "replicas=-1"),
        ("kvcluster", "image="),
        ("kvcluster", "watchNamespaces={Upper}"),
        ("kvcluster", "resources.limits.memory=lots"),
        ("kvcluster", "nodeReader=perhaps"),
        ("kvcluster", "lostNodeSeconds=-1"),
        ("kvcluster-dev", "storage=disk"),
        ("kvcluster-dev", "kafka.nodePort=70000"),
        ("kvcluster-dev", "postgres.password="),
        ("kvcluster-dev", "hostPath.path=relative"),
        ("kvcluster-dev", "hostPath.path=/"),
    ];
    for (name, value) in refused {
        let ended = template(name, &[value])?;
        assert!(!ended.success, "{name} takes {value}");
        assert!(
            ended.stderr.contains("schema"),
            "{name} {value}: {}",
            ended.stderr
        );
    }
    let ended = template("kvcluster-dev", &["storage=hostPath"])?;
    assert!(
        !ended.success && ended.stderr.contains("hostPath.node"),
        "{}",
        ended.stderr
    );
    Ok(())
}

#[test]
fn the_development_services_are_where_they_say() -> Result<()> {
    let objects = render("kvcluster-dev", &[])?;
    let properties = only(&objects, "ConfigMap", "kafka")["data"]["server.properties"].to_string();
    assert!(properties.contains("INTERNAL://kafka.home.svc:9092,EXTERNAL://127.0.0.1:30092"));
    assert!(properties.contains("auto.create.topics.enable=false"));
    assert!(properties.contains("unclean.leader.election.enable=false"));
    for (name, port, node_port) in [
        ("kafka-external", 30092, 30092),
        ("postgres-external", 5432, 30432),
    ] {
        let ports = &only(&objects, "Service", name)["spec"]["ports"][0];
        assert_eq!(
            (ports["port"].as_u64(), ports["nodePort"].as_u64()),
            (Some(port), Some(node_port))
        );
    }
    for (part, port) in [("kafka", 9092), ("postgres", 5432)] {
        let service = only(&objects, "Service", part);
        assert_eq!(service["spec"]["ports"][0]["port"], port);
        let set = only(&objects, "StatefulSet", part);
        assert_eq!(
            service["spec"]["selector"],
            set["spec"]["selector"]["matchLabels"]
        );
        let claim = &set["spec"]["volumeClaimTemplates"][0];
        assert_eq!(claim["metadata"]["name"], "data");
        assert!(
            claim["spec"]["storageClassName"].is_null(),
            "the default class is the cluster's"
        );
    }
    Ok(())
}

#[test]
fn storage_follows_its_value() -> Result<()> {
    let data = |set: &Value| {
        let volumes = set["spec"]["template"]["spec"]["volumes"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        volumes.into_iter().find(|volume| volume["name"] == "data")
    };
    for part in ["kafka", "postgres"] {
        let objects = render("kvcluster-dev", DEV_VALUES[1])?;
        assert!(
            !names(&objects).iter().any(|name| name.contains("external")),
            "{:?}",
            names(&objects)
        );
        let set = only(&objects, "StatefulSet", part);
        assert!(data(set).is_some_and(|volume| volume["emptyDir"].is_object()));
        assert!(set["spec"]["volumeClaimTemplates"].is_null());

        let objects = render("kvcluster-dev", DEV_VALUES[2])?;
        let set = only(&objects, "StatefulSet", part);
        let volume = data(set).context("a volume")?;
        assert_eq!(
            volume["hostPath"]["path"],
            format!("/var/lib/kvcluster-dev/{part}")
        );
        let pod = &set["spec"]["template"]["spec"];
        assert_eq!(pod["nodeSelector"]["kubernetes.io/hostname"], "worker");
        assert_eq!(pod["initContainers"][0]["name"], "own-data");
    }
    Ok(())
}
