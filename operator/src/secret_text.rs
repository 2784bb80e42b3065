//! Text that must not be shown, and the PostgreSQL URLs made of it.

use std::fmt;
use std::str::FromStr;

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

/// Text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Text that is no PostgreSQL URL. Does not quote the text, which may hold a password.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected postgres://user:password@host:port/database")]
pub struct UrlError;

/// The connection options in a URL.
pub fn options(url: &SecretText) -> Result<PgConnectOptions, UrlError> {
    let text = url.reveal().trim();
    if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
        return Err(UrlError);
    }
    PgConnectOptions::from_str(text).map_err(|_| UrlError)
}

/// The URL of `role` on the server and database of the admin's URL.
pub fn node_url(
    admin: &SecretText,
    role: &str,
    password: &SecretText,
) -> Result<SecretText, UrlError> {
    let mut options = options(admin)?.username(role).password(password.reveal());
    if options.get_database().is_none() {
        // Left out, it would default to the name of the user, which is another one now.
        options = options.database(self::options(admin)?.get_username());
    }
    Ok(SecretText::new(options.to_url_lossy().to_string()))
}

/// The password in a URL that [`node_url`] made. Such a password is of letters and digits: nothing in it is encoded.
pub fn password_of(url: &SecretText) -> Option<SecretText> {
    let (_, rest) = url.reveal().split_once("://")?;
    let (credentials, _) = rest.split_once('@')?;
    let (_, password) = credentials.split_once(':')?;
    let plain = !password.is_empty() && password.bytes().all(|b| b.is_ascii_alphanumeric());
    plain.then(|| SecretText::new(password))
}

/// Server and database of a URL, for messages.
pub fn place(url: &SecretText) -> String {
    options(url).map_or_else(
        |_| "an unreadable URL".to_owned(),
        |options| {
            let database = options.get_database().unwrap_or("(default)");
            format!("{}:{}/{database}", options.get_host(), options.get_port())
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_url_has_the_place_of_the_admin_url() {
        let admin = SecretText::new("postgres://boss:s%40crt@db.example:5433/app?sslmode=require");
        let url = node_url(&admin, "kv_demo_0", &SecretText::new("abc123")).unwrap();
        assert!(
            url.reveal()
                .starts_with("postgres://kv_demo_0:abc123@db.example:5433/app?")
        );
        assert!(url.reveal().contains("sslmode=require"));
        assert_eq!(password_of(&url), Some(SecretText::new("abc123")));
        assert_eq!(place(&url), "db.example:5433/app");
        assert!(!format!("{url:?}").contains("abc123"));
    }

    #[test]
    fn a_url_without_a_database_keeps_the_admins_default() {
        let admin = SecretText::new("postgres://boss:x@db:5432");
        let url = node_url(&admin, "kv_demo_0", &SecretText::new("abc123")).unwrap();
        assert_eq!(place(&url), "db:5432/boss");
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "db:5432",
            "mysql://a@b/c",
            "postgres://a:b@host:notaport/c",
        ] {
            assert_eq!(
                options(&SecretText::new(text)).err(),
                Some(UrlError),
                "{text}"
            );
        }
    }

    #[test]
    fn a_password_that_is_not_ours_is_not_taken() {
        for url in [
            "postgres://role@db:1/x",
            "postgres://role:a%20b@db:1/x",
            "nothing",
        ] {
            assert_eq!(password_of(&SecretText::new(url)), None, "{url}");
        }
    }
}
