//! What lives: flows, drops, limits, metrics.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_and_drops() {
    let node = Node::kernel().start().await;
    let config = &node.config;
    check(&run(config, &["flows"]).await, 1, "", "the datapath role");
    check(&run(config, &["drops"]).await, 1, "", "the datapath role");
    let script = Arc::new(Script::default());
    let role = script.serve(config);
    until("the datapath to be reached", async || run(config, &["flows"]).await.status.success()).await;
    check(&run(config, &["flows"]).await, 0, "no flow is live", "");
    check(&run(config, &["drops"]).await, 0, "nothing was dropped lately", "");

    let source = SourceRef {
        ip: Some("10.0.0.2".parse().expect("address")),
        port: Some(40_000),
        interface: Some("eth1".to_owned()),
        mac: None,
    };
    let destination = Destination {
        ip: Some("2001:db8::1".parse().expect("address")),
        port: Some(443),
        protocol: Some("tcp".to_owned()),
        ..Destination::default()
    };
    let flow = LiveFlow {
        request: "k1-1".to_owned(),
        agent: Some("acme/web".parse().expect("id")),
        source: source.clone(),
        destination: destination.clone(),
        action: "direct".to_owned(),
        policies: vec!["go".to_owned()],
        generation: 3,
        age_ms: 61_000,
        idle_ms: 10,
        packets_sent: 5,
        bytes_sent: 500,
        packets_received: 4,
        bytes_received: 4000,
    };
    let seen = "2026-11-22T14:00:00Z".parse().expect("time");
    let drop = RecentDrop {
        agent: None,
        source,
        destination,
        // What agents can name must not reach the terminal as it is.
        reason: "policy_denied\u{1b}[2J".to_owned(),
        hook: "xdp".to_owned(),
        count: 42,
        first: seen,
        last: seen,
    };
    script.live_flows.lock().await.push(flow.clone());
    script.recent_drops.lock().await.push(drop.clone());

    let shown = run(config, &["flows", "--agent", "acme/web", "-n", "7"]).await;
    check(&shown, 0, "acme/web", "");
    check(&shown, 0, "[2001:db8::1]:443", "");
    check(&shown, 0, "1 min 1 s", "");
    check(&shown, 0, "500/4000", "");
    let query = LiveQuery { agent: Some("acme/web".to_owned()), limit: Some(7), totals: false };
    assert_eq!(script.asked.lock().await.last(), Some(&query));
    let listed: LiveFlows = parse(&run(config, &["flows", "-o", "json"]).await.stdout);
    assert_eq!(listed, LiveFlows { total: 1, flows: vec![flow.clone()] });
    let shown = run(config, &["drops"]).await;
    check(&shown, 0, "42", "");
    check(&shown, 0, "policy_denied\\u{1b}[2J", "");
    let listed: Vec<RecentDrop> = parse(&run(config, &["drops", "-o", "json"]).await.stdout);
    assert_eq!(listed, std::slice::from_ref(&drop));

    let mut following = ctl(&config.admin_socket(), &["drops", "--follow", "-o", "json"]);
    let mut following = following.stdout(Stdio::piped()).spawn().expect("spawn");
    let mut lines = BufReader::new(following.stdout.take().expect("stdout")).lines();
    let first = lines.next_line().await.expect("read").expect("line");
    assert_eq!(parse::<RecentDrop>(first.as_bytes()), drop);
    let more = RecentDrop { count: 43, ..drop };
    *script.recent_drops.lock().await = vec![more.clone()];
    let next = lines.next_line().await.expect("read").expect("line");
    assert_eq!(parse::<RecentDrop>(next.as_bytes()), more);
    following.kill().await.expect("kill");

    role.stop().await;
    check(&run(config, &["flows"]).await, 1, "", "the datapath role");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_a_bounded_number_of_series() {
    let node = Node::kernel().start().await;
    let config = &node.config;
    let script = Arc::new(Script::default());
    let counted = [("xdp_dropped", 7), ("tc_dropped", 3), ("policy_denied", 9)];
    script.counters.lock().await.extend(counted.map(|(what, count)| (what.to_owned(), count)));
    let role = script.serve(config);
    until("the datapath to be reached", async || run(config, &["flows"]).await.status.success()).await;
    let metrics = run(config, &["metrics"]).await;
    check(&metrics, 0, "clawgress_flows_max 10\n", "");
    check(&metrics, 0, "clawgress_tracked_max 9\n", "");
    check(&metrics, 0, "clawgress_tracking_dropped_total 2\n", "");
    check(&metrics, 0, "clawgress_limiters_left_out 0\n", "");
    check(&metrics, 0, "# TYPE clawgress_kernel_packets counter\n", "");
    for (what, count) in counted {
        let series = format!("\nclawgress_kernel_packets_total{{what=\"{what}\"}} {count}\n");
        check(&metrics, 0, &series, "");
    }
    let asked = script.asked.lock().await.last().cloned().expect("a query");
    assert!(asked.totals && asked.limit == Some(1_001), "a bounded number: {asked:?}");
    let limit = |n: u64| LiveLimit {
        group: None,
        agent: Some("acme/web".parse().expect("id")),
        cgroup: None,
        policy: Some(format!("pace \"{n}\"")),
        unit: "packets".to_owned(),
        count: 5,
        period_s: 1,
        burst: 7,
        over: "pace".to_owned(),
        room: 0,
        passed: n,
        dropped: 2 * n,
    };
    *script.limits.lock().await = (1..=1_001).map(limit).collect();
    let metrics = run(config, &["metrics"]).await;
    let dropped =
        r#"clawgress_limiter_dropped_packets_total{agent="acme/web",policy="pace \"9\"",unit="packets"} 18"#;
    check(&metrics, 0, dropped, "");
    check(&metrics, 0, "clawgress_limiters_left_out 1\n", "");
    let text = String::from_utf8(metrics.stdout.clone()).expect("text");
    assert_eq!(text.matches("clawgress_limiter_passed_total{").count(), 1_000, "and no more series");
    check(&run(config, &["limits"]).await, 0, "pace ", "");
    assert!(metrics.stdout.ends_with(b"# EOF\n"), "{metrics:?}");
    role.stop().await;
    check(&run(config, &["metrics"]).await, 0, "# EOF", "");
}

/// What an agent is not known by is told with what to do, in the words of the real tables.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_at_an_interface_that_is_not_there_is_told() {
    let node = Node::kernel().start().await;
    let config = &node.config;
    let script = Arc::new(Script::default());
    let role = script.serve(config);
    until("the datapath to be reached", async || run(config, &["flows"]).await.status.success()).await;
    let source = "lo=10.0.0.2/32,02:00:00:00:00:02";
    check(&run(config, &["agent", "create", "web", "--source", source]).await, 0, "is created", "");
    let has_it = async || script.latest().await.is_some_and(|applied| applied.agents.len() == 1);
    until("the agent to be in the tables", has_it).await;
    check(&run(config, &["status"]).await, 0, "warning: not enforced: the weather", "");

    let applied = script.latest().await.expect("a generation");
    let plan = Plan::new(&applied, &BTreeMap::new()).expect("a plan");
    script.absent.lock().await.extend(plan.skipped);
    let shown = run(config, &["status"]).await;
    let told = format!("warning: not enforced: agent `default/web` is not known by its source `{source}`");
    check(&shown, 0, &told, "");
    check(&shown, 0, "this machine has no agents' interface `lo` now", "");
    check(&shown, 0, "create the agent anew with another --source", "");
    let status: Status = parse(&run(config, &["status", "-o", "json"]).await.stdout);
    let is_told = |warning: &String| warning.contains(source) && warning.contains("`default/web`");
    assert_eq!(status.warnings.iter().filter(|w| is_told(w)).count(), 1, "{:?}", status.warnings);
    role.stop().await;
}
