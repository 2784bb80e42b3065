//! Kubernetes quantities (`500m`, `1Gi`, `2e3`), compared by value.

/// Whether both are quantities of the same value.
pub fn are_equal(one: &str, other: &str) -> bool {
    matches!((nano(one), nano(other)), (Some(one), Some(other)) if one == other)
}

/// The value in billionths, the finest step that Kubernetes knows.
fn nano(text: &str) -> Option<i128> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor = factor(suffix)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && part.is_empty() || part.len() > 9 {
        return None;
    }
    let digits: i128 = format!("{whole}{part}").parse().ok()?;
    let scale = 10_i128.pow(u32::try_from(part.len()).ok()?);
    Some(digits.checked_mul(factor)? / scale)
}

fn factor(suffix: &str) -> Option<i128> {
    const ONE: i128 = 1_000_000_000;
    let binary = |power: u32| ONE << (10 * power);
    let exponent = suffix
        .strip_prefix(['e', 'E'])
        .filter(|rest| !rest.is_empty());
    if let Some(power) = exponent.and_then(|rest| rest.parse::<u32>().ok()) {
        return ONE.checked_mul(10_i128.checked_pow(power)?);
    }
    Some(match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => ONE,
        "k" => ONE * 1_000,
        "M" => ONE * 1_000_000,
        "G" => ONE * 1_000_000_000,
        "T" => ONE * 1_000_000_000_000,
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_equal() {
        for (one, other) in [
            ("0.5", "500m"),
            ("1Gi", "1024Mi"),
            ("1.5Gi", "1536Mi"),
            ("1e3", "1k"),
            ("1", "1000m"),
        ] {
            assert!(are_equal(one, other), "{one} {other}");
        }
    }

    #[test]
    fn other_values_and_other_text_are_not() {
        for (one, other) in [
            ("1", "1k"),
            ("1Gi", "1G"),
            ("abc", "abd"),
            ("", ""),
            (".", "0"),
            ("1x", "1x"),
        ] {
            assert!(!are_equal(one, other), "{one} {other}");
        }
    }
}
