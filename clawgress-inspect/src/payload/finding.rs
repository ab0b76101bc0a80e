//! What is looked for in bodies, by its names. Must never tell where it was found, or what it is.

/// What was found in a body. The names are words of policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// The first line of a private key in PEM; or the first bytes of one in DER, in base64, base32 or hexadecimal digits.
    PrivateKey,
    /// It does not begin like what its media type says, or that of one of its parts.
    MediaTypeMismatch,
    /// It holds an archive, or a coding of one, that is not read.
    ArchiveUnread,
    /// Text in base64, base32 or hexadecimal digits, but for parts of tokens.
    EncodedText,
    /// The same inside the same.
    EncodedNested,
    /// A packed file in one of these, which was looked into.
    EncodedPacked,
    /// A long run of such letters, used evenly: what is enciphered or packed looks like that.
    OpaqueRun,
    /// A link that carries much, or text in one of these.
    LinkData,
    /// The link of an image in Markdown or HTML that carries data.
    ImageLinkData,
    /// A name of a member, or an id, of more than [`NAME_BYTES_MAX`](super::NAME_BYTES_MAX) bytes.
    OversizedIdentifier,
    /// The number of a payment card.
    PaymentCard,
    /// An account number of ISO 13616.
    Iban,
    /// A social security number of the United States.
    UsSsn,
    /// A telephone number of E.164.
    PhoneNumber,
    /// E-mail addresses, several.
    EmailAddresses,
}

// === impl Finding ===

impl Finding {
    /// Every one.
    pub const ALL: [Finding; 15] = [
        Finding::PrivateKey,
        Finding::MediaTypeMismatch,
        Finding::ArchiveUnread,
        Finding::EncodedText,
        Finding::EncodedNested,
        Finding::EncodedPacked,
        Finding::OpaqueRun,
        Finding::LinkData,
        Finding::ImageLinkData,
        Finding::OversizedIdentifier,
        Finding::PaymentCard,
        Finding::Iban,
        Finding::UsSsn,
        Finding::PhoneNumber,
        Finding::EmailAddresses,
    ];

    /// Its name in policy.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Finding::PrivateKey => "private_key",
            Finding::MediaTypeMismatch => "media_type_mismatch",
            Finding::ArchiveUnread => "archive_unread",
            Finding::EncodedText => "encoded_text",
            Finding::EncodedNested => "encoded_nested",
            Finding::EncodedPacked => "encoded_packed",
            Finding::OpaqueRun => "opaque_run",
            Finding::LinkData => "link_data",
            Finding::ImageLinkData => "image_link_data",
            Finding::OversizedIdentifier => "oversized_identifier",
            Finding::PaymentCard => "payment_card",
            Finding::Iban => "iban",
            Finding::UsSsn => "us_ssn",
            Finding::PhoneNumber => "phone_number",
            Finding::EmailAddresses => "email_addresses",
        }
    }
}
