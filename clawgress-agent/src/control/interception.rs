//! The authority by which TLS is read, told to administrators. Its key is the keys role's.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clawgress_api::proto::InterceptionAuthority;
use clawgress_api::{InterceptionStatus, hex};
use jiff::Timestamp;
use x509_parser::parse_x509_certificate;

use super::Control;
use super::model::Refusal;

/// Characters of a line of PEM (RFC 7468 section 2).
const PEM_LINE: usize = 64;

// === impl Control ===

impl Control {
    /// The authority.
    ///
    /// # Errors
    /// If TLS is not read, or the keys role can't be asked.
    pub(super) async fn interception(&self) -> Result<InterceptionStatus, Refusal> {
        let InterceptionAuthority { chain, is_own } = self.runs.keyring.authority().await?;
        let unreadable = || Refusal::Unavailable("the keys role's authority can't be read".to_owned());
        let own = chain.first().ok_or_else(unreadable)?;
        let (_, parsed) = parse_x509_certificate(own).map_err(|_| unreadable())?;
        let not_after = Timestamp::from_second(parsed.validity().not_after.timestamp());
        Ok(InterceptionStatus {
            subject: parsed.subject().to_string(),
            sha256: hex(digest(&SHA256, own).as_ref()),
            not_after: not_after.map_err(|_| unreadable())?,
            chain: chain.iter().map(|der| pem(der)).collect(),
            is_own,
            exclude: self.governor.config.intercept.as_ref().map(|i| i.exclude.clone()).unwrap_or_default(),
        })
    }
}

fn pem(der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for (n, character) in text.chars().enumerate() {
        if n > 0 && n % PEM_LINE == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem + "\n-----END CERTIFICATE-----\n"
}
