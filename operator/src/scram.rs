//! Passwords of the nodes' roles, and the SCRAM-SHA-256 verifiers that PostgreSQL stores for them (RFC 5802, RFC 7677). The
//! verifier is computed here so that no password travels in an SQL statement, where a server log could show it.

use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};

use crate::secret_text::SecretText;

/// PBKDF2 rounds; PostgreSQL's own default. The passwords are random, so more rounds would protect nothing.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("not zero");
/// Bytes of salt; PostgreSQL's own default.
const SALT_BYTES: usize = 16;
/// Characters of a password: 32 of 62 kinds are 190 bits.
const PASSWORD_LENGTH: usize = 32;

/// The machine gives no random numbers.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("failed to get random numbers from the system")]
pub struct RandomError;

/// A password of letters and digits: needs no quoting anywhere.
pub fn random_password() -> Result<SecretText, RandomError> {
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut password = String::with_capacity(PASSWORD_LENGTH);
    while password.len() < PASSWORD_LENGTH {
        // 248 = 4 × 62: above it a letter would be more likely than another.
        let [byte] = random_bytes::<1>()?;
        if byte < 248 {
            password.push(char::from(LETTERS[usize::from(byte % 62)]));
        }
    }
    Ok(SecretText::new(password))
}

/// Random bytes of the system.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| RandomError)?;
    Ok(bytes)
}

/// A verifier for `password` with a random salt.
pub fn random_verifier(password: &SecretText) -> Result<String, RandomError> {
    Ok(verifier(password, &random_bytes::<SALT_BYTES>()?))
}

/// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
fn verifier(password: &SecretText, salt: &[u8; SALT_BYTES]) -> String {
    let mut salted = [0; digest::SHA256_OUTPUT_LEN];
    let password = password.reveal().as_bytes();
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        ITERATIONS,
        salt,
        password,
        &mut salted,
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, &salted);
    let client_key = hmac::sign(&key, b"Client Key");
    let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
    let server_key = hmac::sign(&key, b"Server Key");
    format!(
        "SCRAM-SHA-256${ITERATIONS}:{}${}:{}",
        STANDARD.encode(salt),
        STANDARD.encode(stored_key),
        STANDARD.encode(server_key)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of RFC 7677's example (user `user`, password `pencil`), whose proofs were checked against the RFC.
    #[test]
    fn the_verifier_is_the_rfcs() {
        let salt: [u8; 16] = STANDARD
            .decode("W22ZaJ0SNY7soEsUEjb6gQ==")
            .unwrap()
            .try_into()
            .unwrap();
        let verifier = verifier(&SecretText::new("pencil"), &salt);
        assert_eq!(
            verifier,
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
    }

    #[test]
    fn passwords_are_long_plain_and_different() {
        let (one, other) = (random_password().unwrap(), random_password().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.reveal().len(), PASSWORD_LENGTH);
        assert!(one.reveal().bytes().all(|b| b.is_ascii_alphanumeric()));
    }
}
