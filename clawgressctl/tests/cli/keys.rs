//! The verbs on API keys: what they print, and that a secret is printed once.

use clawgress_api::{ApiKeyInfo, ApiKeyState, CreatedAgent, CreatedApiKey};

use super::node::{Node, parse};
use super::{check, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys() {
    let node = Node::new().start().await;
    let config = &node.config;
    check(&run(config, &["key", "list"]).await, 0, "key create AGENT", "");
    check(&run(config, &["key", "create", "web"]).await, 1, "", "clawgressctl agent list");
    let agent: CreatedAgent = parse(&run(config, &["agent", "create", "web", "-o", "json"]).await.stdout);
    let first = agent.api_key.expect("key");

    let created = run(config, &["key", "create", "web", "--expires", "90d", "--not-before", "2h"]).await;
    check(&created, 0, "of agent `default/web` is created, counts from ", "");
    check(&created, 0, "API key, shown this once:\n  claw_", "");
    let made = run(config, &["-o", "json", "key", "create", "web", "--expires", "2099-01-01T00:00Z"]).await;
    let made: CreatedApiKey = parse(&made.stdout);
    assert_eq!(made.key.expires, "2099-01-01T00:00:00Z".parse().ok());
    let listed = run(config, &["key", "list"]).await;
    check(&listed, 0, "pending", "");
    check(&listed, 0, "2099-01-01T00:00:00Z", "");
    let text = String::from_utf8_lossy(&listed.stdout);
    assert!(!text.contains(&made.api_key[18..]) && !text.contains(&first[18..]), "{text}");
    check(&run(config, &["key", "list", "--agent", "nobody"]).await, 1, "", "no agent `default/nobody`");

    let rotated =
        run(config, &["key", "rotate", &made.key.id, "--overlap", "1h", "--expires", "30d", "-o", "json"])
            .await;
    let rotated: CreatedApiKey = parse(&rotated.stdout);
    assert_eq!(rotated.replaces.map(|old| (old.id, old.state)), Some((made.key.id, ApiKeyState::Rotating)));
    // By default the old one counts for a day; a whole key names itself.
    let rotated = run(config, &["key", "rotate", &first]).await;
    check(&rotated, 0, &format!("key `{}`, whose place it takes, ends ", &first[5..17]), "");
    check(&run(config, &["key", "revoke", &first]).await, 0, "of agent `default/web` is revoked", "");
    let listed: Vec<ApiKeyInfo> =
        parse(&run(config, &["key", "list", "--agent", "web", "-o", "json"]).await.stdout);
    let state = |id: &str| listed.iter().find(|key| key.id == id).map(|key| key.state);
    assert_eq!((listed.len(), state(&first[5..17])), (5, Some(ApiKeyState::Revoked)));

    check(&run(config, &["key", "revoke", "000000000000"]).await, 1, "", "clawgressctl key list");
    let wrong = run(config, &["key", "revoke", &first[..70]]).await;
    check(&wrong, 2, "", "write its 12 hexadecimal digits");
    for (option, value) in [("--overlap", "soon"), ("--overlap", "1w"), ("--expires", "tomorrow")] {
        check(&run(config, &["key", "rotate", "000000000000", option, value]).await, 2, "", value);
    }
    check(
        &run(config, &["key", "create", "web", "--expires", "2020-01-01T00:00Z"]).await,
        1,
        "",
        "--expires",
    );
    check(&run(config, &["completion", "bash"]).await, 0, "clawgressctl__subcmd__key,rotate)", "");
}
