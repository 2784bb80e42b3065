//! Connections of local parts, cut by the kernel's packet filter: a part's process has a group of its own, and packets that
//! this group sends, or answers to them, are dropped. Nothing is reset: whoever waits, waits, as behind a broken switch.
//!
//! All rules stand in chains of the lab's own on the loopback device, which [`heal`] removes; so does the end of `local`.

use anyhow::{Context, Result, bail, ensure};

use crate::local::parts::{Lab, Part};
use crate::machine::is_root;
use crate::shell;

/// Drops what a part sends.
const SENT: Chain = Chain {
    table: "filter",
    from: "OUTPUT",
    name: "KVCLUSTER-SENT",
};
/// Drops the answers to what a part sent.
const ANSWERED: Chain = Chain {
    table: "filter",
    from: "INPUT",
    name: "KVCLUSTER-ANSWERED",
};
/// Marks the connections whose answers are dropped.
const MARKED: Chain = Chain {
    table: "mangle",
    from: "OUTPUT",
    name: "KVCLUSTER-MARKED",
};
/// Group of node 0 and of broker 0; the next ones follow.
const NODE_GROUP: u32 = 61_000;
const BROKER_GROUP: u32 = 61_100;

struct Chain {
    table: &'static str,
    from: &'static str,
    name: &'static str,
}

/// The group that a part's process runs in, where the lab may choose it.
pub fn group_of(part: &str) -> Option<u32> {
    let number = |prefix: &str| part.strip_prefix(prefix)?.parse::<u32>().ok();
    let node = number("node-").map(|id| NODE_GROUP + id);
    node.or_else(|| number("kafka-").map(|id| BROKER_GROUP + id))
}

/// Drops the packets of `part` to `target`: a part, or all `kafka` or `node` parts but itself. With `answers` these packets
/// arrive, and the answers to them do not.
pub fn cut(lab: &mut Lab, part: &str, target: &str, answers: bool) -> Result<()> {
    ensure!(
        is_root(),
        "only root can cut connections: run it with `sudo`"
    );
    lab.part_mut(part)?;
    let group = group_of(part)
        .with_context(|| format!("{part} has no group of its own: cut a node or a broker"))?;
    let ports = ports_of(&lab.parts, part, target);
    if ports.is_empty() {
        bail!("`{target}` is no part to be cut from: give kafka, postgres, node, or a part's name");
    }
    let group = group.to_string();
    for number in ports {
        let number = number.to_string();
        let sent = [
            "-p",
            "tcp",
            "--dport",
            &number,
            "-m",
            "owner",
            "--gid-owner",
            &group,
        ];
        if answers {
            MARKED.add(&sent, &["-j", "CONNMARK", "--set-mark", &group])?;
            let returning = [
                "-p", "tcp", "--sport", &number, "-m", "connmark", "--mark", &group,
            ];
            ANSWERED.add(&returning, &["-j", "DROP"])?;
        } else {
            SENT.add(&sent, &["-j", "DROP"])?;
        }
    }
    Ok(())
}

/// Removes every cut; how many packets they dropped.
pub fn heal() -> Result<u64> {
    // Only root can have cut anything.
    if !is_root() {
        return Ok(0);
    }
    let dropped = SENT.dropped()? + ANSWERED.dropped()?;
    [SENT, ANSWERED, MARKED]
        .iter()
        .try_for_each(Chain::remove)?;
    Ok(dropped)
}

/// The packets that rules dropped, by the text of `iptables -S -v`: `… -c packets bytes -j DROP`.
fn count_dropped(rules: &str) -> u64 {
    let dropping = rules.lines().filter(|line| line.ends_with("-j DROP"));
    let counts = dropping.filter_map(|line| {
        let (_, counters) = line.split_once(" -c ")?;
        counters.split_whitespace().next()?.parse::<u64>().ok()
    });
    counts.sum()
}

fn ports_of(parts: &[Part], part: &str, target: &str) -> Vec<u16> {
    let is_meant = |other: &&Part| {
        let of_kind = other.name.strip_prefix(target).is_some_and(|rest| {
            rest.strip_prefix('-')
                .is_some_and(|id| id.parse::<u16>().is_ok())
        });
        other.name == target || (of_kind && other.name != part)
    };
    let meant = parts.iter().filter(is_meant);
    meant.flat_map(|other| other.ports.clone()).collect()
}

impl Chain {
    fn add(&self, what: &[&str], then: &[&str]) -> Result<()> {
        if !self.exists() {
            self.run(&["-N", self.name])?;
            self.jump("-I")?;
        }
        self.run(&[&["-A", self.name], what, then].concat())
    }

    fn remove(&self) -> Result<()> {
        if !self.exists() {
            return Ok(());
        }
        self.jump("-D")?;
        self.run(&["-F", self.name])?;
        self.run(&["-X", self.name])
    }

    /// Inserts or deletes the way into the chain, for the loopback device alone.
    fn jump(&self, change: &str) -> Result<()> {
        let device = if self.from == "INPUT" { "-i" } else { "-o" };
        self.run(&[change, self.from, device, "lo", "-j", self.name])
    }

    fn dropped(&self) -> Result<u64> {
        if !self.exists() {
            return Ok(0);
        }
        let rules = shell::output(&mut shell::command(&self.words(&["-S", self.name, "-v"])))?;
        Ok(count_dropped(&rules))
    }

    fn exists(&self) -> bool {
        shell::succeeds(&mut shell::command(&self.words(&["-S", self.name])))
    }

    fn run(&self, words: &[&str]) -> Result<()> {
        let words = self.words(words);
        shell::output(&mut shell::command(&words))
            .map(drop)
            .context("the packet filter refuses a rule (Debian's package `iptables`)")
    }

    fn words<'a>(&self, words: &[&'a str]) -> Vec<&'a str> {
        [&["iptables", "-w", "-t", self.table], words].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, ports: &[u16]) -> Part {
        Part {
            name: name.to_owned(),
            ports: ports.to_vec(),
            ..Part::default()
        }
    }

    #[test]
    fn a_target_is_a_part_or_all_of_a_kind_but_itself() {
        let parts = [
            part("kafka-0", &[1, 2]),
            part("kafka-1", &[3, 4]),
            part("postgres", &[5]),
            part("node-0", &[6, 7]),
            part("node-1", &[8, 9]),
        ];
        assert_eq!(ports_of(&parts, "node-0", "kafka"), [1, 2, 3, 4]);
        assert_eq!(ports_of(&parts, "kafka-1", "kafka"), [1, 2]);
        assert_eq!(ports_of(&parts, "node-0", "postgres"), [5]);
        assert_eq!(ports_of(&parts, "node-1", "node-0"), [6, 7]);
        assert!(ports_of(&parts, "node-1", "no").is_empty());
    }

    #[test]
    fn dropped_packets_are_counted() {
        let rules = "-N X -c 7 7\n-A X -p tcp -c 3 180 -j DROP\n-A X -c 2 9 -j CONNMARK\n-A X -c 4 1 -j DROP";
        assert_eq!(count_dropped(rules), 7);
    }

    #[test]
    fn every_node_and_broker_has_a_group_of_its_own() {
        assert_eq!(group_of("node-2"), Some(61_002));
        assert_eq!(group_of("kafka-2"), Some(61_102));
        assert_eq!(group_of("postgres"), None);
    }
}
