//! What an engine leaves behind in the packet filter, and how to take exactly that out again. Pure.

/// The restore text that removes an engine's chains and rules from one `iptables-save` text, and leaves all else; `None` if
/// there is nothing to remove. `bridges` are the engine's own network devices.
pub fn without_engine(saved: &str, bridges: &[String], forward_policy: &str) -> Option<String> {
    let is_engines = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let names_chain = words
            .iter()
            .any(|word| is_engine_chain(word.trim_start_matches(':')));
        names_chain
            || words
                .iter()
                .any(|word| bridges.iter().any(|bridge| bridge == word))
    };
    let kept = saved.lines().filter(|line| !is_engines(line));
    let kept = kept.map(|line| {
        if line.starts_with(":FORWARD ") && saved.contains(":DOCKER-USER") {
            format!(":FORWARD {forward_policy} [0:0]")
        } else {
            line.to_owned()
        }
    });
    let text: Vec<String> = kept.collect();
    let is_changed = text.len() != saved.lines().count();
    is_changed.then(|| text.join("\n") + "\n")
}

/// The policy of the chain FORWARD in an `iptables-save` text; the kernel's own if the table is not there.
pub fn forward_policy(saved: &str) -> &str {
    let line = saved
        .lines()
        .find_map(|line| line.strip_prefix(":FORWARD "));
    line.and_then(|rest| rest.split_whitespace().next())
        .unwrap_or("ACCEPT")
}

fn is_engine_chain(name: &str) -> bool {
    name == "DOCKER"
        || name.starts_with("DOCKER-")
        || name == "DOCKER_OUTPUT"
        || name == "DOCKER_POSTROUTING"
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "*filter\n\
        :INPUT ACCEPT [0:0]\n:FORWARD DROP [5:300]\n:OUTPUT ACCEPT [0:0]\n\
        :DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n:MINE - [0:0]\n\
        -A FORWARD -j DOCKER-USER\n-A FORWARD -o br-1a2b -m conntrack -j ACCEPT\n\
        -A FORWARD -j MINE\n-A DOCKER-USER -j RETURN\n-A MINE -s 10.0.0.1/32 -j DROP\nCOMMIT\n";

    #[test]
    fn only_the_engines_rules_go() {
        let left =
            without_engine(SAVED, &["br-1a2b".to_owned()], "ACCEPT").expect("there are some");
        assert_eq!(
            left,
            "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
             :MINE - [0:0]\n-A FORWARD -j MINE\n-A MINE -s 10.0.0.1/32 -j DROP\nCOMMIT\n"
        );
        assert_eq!(without_engine(&left, &[], "ACCEPT"), None);
    }

    #[test]
    fn the_policy_from_before_is_known() {
        assert_eq!(forward_policy(SAVED), "DROP");
        assert_eq!(forward_policy(""), "ACCEPT");
    }
}
