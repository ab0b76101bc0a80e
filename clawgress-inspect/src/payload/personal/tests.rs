//! What is found, in any pieces, and what only looks like it.

use super::*;

/// What is found in a text, the same in any pieces.
fn found(text: &str) -> Vec<&'static str> {
    let all = |size: usize| {
        let (mut personal, mut all) = (Personal::default(), BTreeSet::new());
        let mut sink = |finding: Finding| {
            all.insert(finding);
        };
        text.as_bytes().chunks(size).for_each(|piece| personal.scan(piece, true, &mut sink));
        personal.finish(&mut sink);
        all.into_iter().map(Finding::name).collect::<Vec<_>>()
    };
    let whole = all(text.len().max(1));
    for size in [1, 2, 3, 7] {
        assert_eq!(all(size), whole, "{text} by {size}");
    }
    whole
}

#[test]
fn numbers_are_found_in_runs_of_any_length() {
    let card = "4242424242424242";
    for before in
        ["1 ", "4242424242424241 ", "12345678901234567890123456789012345678901234567890 ", "078-05-1120 "]
    {
        for times in 0..60 {
            let text = format!("{}{card}", before.repeat(times));
            assert_eq!(found(&text), ["payment_card"], "{text}");
            let text = format!("{}536-90-4399 {}", before.repeat(times), before.repeat(9));
            assert_eq!(found(&text), ["us_ssn"], "{text}");
        }
    }
    let digits = "4242424242424242".repeat(20);
    assert_eq!(found(&digits), [""; 0]);
    assert_eq!(found(&format!("{digits} 1-{card}")), [""; 0]);
    assert_eq!(found("6212345678777777774"), ["payment_card"], "of 19 digits");
}

#[test]
fn no_more_is_kept_than_one_of_each() {
    let mut personal = Personal::default();
    let mut none = |finding: Finding| panic!("{}", finding.name());
    for piece in [&b"a"[..], b".", b"1", b"@", b"."] {
        for _ in 0..100_000 {
            personal.scan(piece, true, &mut none);
        }
        let Personal { run, iban, mail, .. } = &personal;
        let domain = mail.domain.as_ref().map_or(0, Vec::len);
        assert!([run.bytes.len(), iban.text.len(), mail.local.len(), domain].iter().all(|kept| *kept <= 65));
    }
}

#[test]
fn cards_are_told_by_their_issuers_lengths_groups_and_check_digits() {
    for card in [
        "4111111111111112 4242424242424242",
        "4242 4242 4242 4242",
        "4242-4242-4242-4242",
        "5555555555554444",
        "2223003122003222",
        "378282246310005",
        "3782 822463 10005",
        "30569309025904",
        "3056 930902 5904",
        "6011111111111117",
        "3530111333300000",
        "6200 0000 0000 0005",
        "{\"card\":\"4242424242424242\"}",
        "12 34 4242 4242 4242 4242 12/27",
        "pay with 5105105105105100.",
    ] {
        let text = card.replace("5100.", "5100");
        assert_eq!(found(&text), ["payment_card"], "{card}");
    }
    for other in [
        "4242424242424241",
        "4242 4242-4242 4242",
        "42424242 42424242",
        "x4242424242424242",
        "4242424242424242x",
        "0.4242424242424242",
        "1-4242-4242-4242-4242",
        "1234567890123452",
        "1732723200000000",
        "9999999999999995",
        "64242424242424242424242",
        "4242424242424242-1",
        "https://a.test/4242424242424242",
    ] {
        assert_eq!(found(other), [""; 0], "{other}");
    }
}

#[test]
fn accounts_are_told_by_country_length_and_check_digits() {
    for iban in [
        "DE89370400440532013000",
        "DE89 3704 0044 0532 0130 00",
        "pay to GB82 WEST 1234 5698 7654 32 EUR",
        "\"NO9386011117947\"",
        "FR1420041010050500013M02606",
        "MT84MALT011000012345MTLCAST001S",
        "(CH9300762011623852957)",
    ] {
        assert_eq!(found(iban), ["iban"], "{iban}");
    }
    for other in [
        "DE89370400440532013001",
        "DE8937040044053201300",
        "DE893704004405320130000",
        "XDE89370400440532013000",
        "de89370400440532013000",
        "DE89 37 04 0044 0532 0130 00",
        "ZZ89370400440532013000",
        "DE8X370400440532013000",
    ] {
        assert_eq!(found(other), [""; 0], "{other}");
    }
}

#[test]
fn numbers_of_people_and_telephones_are_told_by_their_plans() {
    for ssn in ["536-90-4399", "ssn: 001-01-0001,", "{\"a\":\"899-99-9999\"}"] {
        assert_eq!(found(ssn), ["us_ssn"], "{ssn}");
    }
    for other in [
        "000-12-3456",
        "666-12-3456",
        "900-12-3456",
        "536-00-4399",
        "536-90-0000",
        "078-05-1120",
        "536 90 4399",
        "536904399",
        "1-536-90-4399",
        "536-90-4399-1",
        "a536-90-4399",
        "2024-10-1234",
    ] {
        assert_eq!(found(other), [""; 0], "{other}");
    }
    for phone in [
        "+14155552671",
        "+1 (415) 555-2671",
        "tel:+442079460958",
        "+49 30 901820",
        "+33.1.70.18.99.00",
        "+91-98765-43210",
    ] {
        assert_eq!(found(phone), ["phone_number"], "{phone}");
    }
    for other in [
        "14155552671",
        "+1415555267",
        "+11155552671",
        "+2024-01-02",
        "+1000000",
        "+0123456789",
        "a+14155552671",
        "2024-01-01T00:00:00+01:00",
        "+1234567890123456",
    ] {
        assert_eq!(found(other), [""; 0], "{other}");
    }
}

#[test]
fn addresses_are_a_finding_in_number() {
    let list = |n: usize| (0..n).map(|n| format!("\"u{n}@mail{n}.example.org\",")).collect::<String>();
    assert_eq!(found(&list(MAILS_MIN)), ["email_addresses"]);
    assert_eq!(found(&list(MAILS_MIN - 1)), [""; 0]);
    assert_eq!(found(&"one@example.org, ".repeat(50)), [""; 0], "it is one");
    let code =
        (0..50).map(|n| format!("@dec{n} pkg@1.{n}.0 a@b{n} git@host{n}: x@.y{n}.c ")).collect::<String>();
    assert_eq!(found(&code), [""; 0]);
    assert_eq!(found(&format!("{} last{}", list(9), "@host.example.org")), ["email_addresses"]);
}
