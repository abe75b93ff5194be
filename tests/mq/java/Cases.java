import com.ibm.mq.MQAsyncStatus;
import com.ibm.mq.MQEnvironment;
import com.ibm.mq.MQException;
import com.ibm.mq.MQGetMessageOptions;
import com.ibm.mq.MQMessage;
import com.ibm.mq.MQPutMessageOptions;
import com.ibm.mq.MQQueue;
import com.ibm.mq.MQQueueManager;
import com.ibm.mq.constants.CMQC;
import com.ibm.mq.constants.MQConstants;
import java.util.Arrays;
import java.util.Hashtable;

/** What an application of the MQ classes for Java does; one line a case. */
public class Cases {
    static final int BOTH = CMQC.MQOO_INPUT_AS_Q_DEF | CMQC.MQOO_OUTPUT | CMQC.MQOO_BROWSE | CMQC.MQOO_INQUIRE;
    static final int NONE = CMQC.MQGMO_NO_SYNCPOINT, UNIT = CMQC.MQGMO_SYNCPOINT;
    static final String QUEUE = "A.QUEUE";

    static void fails(int reason, Harness.Body body) throws Exception {
        try {
            body.run();
        } catch (MQException error) {
            Harness.same(reason, error.reasonCode);
            return;
        }
        throw new IllegalStateException("no failure, wanted " + reason);
    }

    static Hashtable<String, Object> properties(String channel, int options) {
        Hashtable<String, Object> properties = new Hashtable<>();
        properties.put(MQConstants.HOST_NAME_PROPERTY, Harness.HOST);
        properties.put(MQConstants.PORT_PROPERTY, Harness.PORT);
        properties.put(MQConstants.CHANNEL_PROPERTY, channel);
        properties.put(MQConstants.TRANSPORT_PROPERTY, MQConstants.TRANSPORT_MQSERIES_CLIENT);
        if (Harness.CIPHER != null) properties.put(MQConstants.SSL_CIPHER_SUITE_PROPERTY, Harness.CIPHER);
        if (options != 0) properties.put(MQConstants.CONNECT_OPTIONS_PROPERTY, options);
        return properties;
    }

    static MQQueueManager connect() throws MQException {
        return new MQQueueManager(Harness.MANAGER, properties(Harness.CHANNEL, 0));
    }

    static MQMessage text(String value) throws Exception {
        MQMessage message = new MQMessage();
        message.format = CMQC.MQFMT_STRING;
        message.characterSet = 1208;
        message.writeString(value);
        return message;
    }

    static MQMessage persistent(String value) throws Exception {
        MQMessage message = text(value);
        message.persistence = CMQC.MQPER_PERSISTENT;
        return message;
    }

    static String read(MQMessage message) throws Exception { return message.readStringOfByteLength(message.getDataLength()); }

    static MQMessage get(MQQueue queue, int options, int wait) throws Exception { return get(queue, options, wait, new MQMessage(), 0); }

    static MQMessage get(MQQueue queue, int options, int wait, MQMessage message, int match) throws Exception {
        MQGetMessageOptions how = new MQGetMessageOptions();
        how.options = options | (wait > 0 ? CMQC.MQGMO_WAIT : 0);
        how.waitInterval = wait;
        how.matchOptions = match;
        queue.get(message, how);
        return message;
    }

    static void put(MQQueue queue, MQMessage message, int options) throws Exception {
        MQPutMessageOptions how = new MQPutMessageOptions();
        how.options = options;
        queue.put(message, how);
    }

    static void drain(MQQueue queue) throws Exception {
        try {
            while (true) get(queue, NONE | CMQC.MQGMO_ACCEPT_TRUNCATED_MSG, 0);
        } catch (MQException error) {
            if (error.reasonCode != CMQC.MQRC_NO_MSG_AVAILABLE) throw error;
        }
    }

    /** The client fails the next MQPUT1 of a connection after one that failed, with the same reason and unasked. */
    static void unput(int reason, String name) throws Exception {
        MQQueueManager other = connect();
        fails(reason, () -> other.put(name, text("x")));
        other.disconnect();
    }

    static MQQueueManager qm;
    static MQQueue queue;

    public static void main(String[] arguments) throws Exception {
        MQEnvironment.sharingConversations = Harness.SHARING;
        MQException.logExclude(0);
        qm = connect();
        queue = qm.accessQueue(QUEUE, BOTH);
        Harness cases = new Harness(arguments, () -> drain(queue));
        connecting(cases);
        messages(cases);
        browsing(cases);
        units(cases);
        objects(cases);
        sizes(cases);
        streams(cases);
        outages(cases);
        cases.one("disconnect", () -> {
            queue.close();
            qm.disconnect();
        });
        System.exit(0);  // threads of broken connections would go on
    }

    static void connecting(Harness cases) {
        cases.one("unknown-manager", () -> fails(2058, () -> new MQQueueManager("NO.SUCH", properties(Harness.CHANNEL, 0))));
        cases.one("unknown-channel", () -> fails(2540, () -> new MQQueueManager(Harness.MANAGER, properties("NO.SUCH", 0))));
        cases.one("denied-channel", () -> fails(2035, () -> new MQQueueManager(Harness.MANAGER, properties("DENIED.SVRCONN", 0))));
        cases.one("many-conversations", () -> {
            MQQueueManager[] others = new MQQueueManager[32];
            for (int i = 0; i < others.length; i++) {
                others[i] = connect();
                MQQueue own = others[i].accessQueue(QUEUE, BOTH);
                own.put(text("c" + i));
                Harness.same("c" + i, read(get(own, NONE, 0)));
                own.close();
            }
            for (MQQueueManager other : others) other.disconnect();
        });
        cases.one("conversations-at-once", () -> {
            Thread[] threads = new Thread[8];
            int[] done = new int[threads.length];
            for (int i = 0; i < threads.length; i++) {
                int number = i;
                threads[i] = new Thread(() -> {
                    try {
                        MQQueueManager own = connect();
                        MQQueue made = own.accessQueue("SYSTEM.DEFAULT.MODEL.QUEUE", BOTH, null, "OWN.*", null);
                        for (int turn = 0; turn < 50; turn++) {
                            made.put(text(number + "-" + turn));
                            Harness.same(number + "-" + turn, read(get(made, NONE, 0)));
                            done[number]++;
                        }
                        own.disconnect();
                    } catch (Exception error) {
                        throw new IllegalStateException(error);
                    }
                });
                threads[i].setUncaughtExceptionHandler((thread, error) -> { });
                threads[i].start();
            }
            for (Thread thread : threads) thread.join();
            for (int each : done) Harness.same(50, each);
        });
    }

    static void messages(Harness cases) {
        cases.one("put-get", () -> {
            queue.put(text("hello"));
            Harness.same("hello", read(get(queue, NONE, 0)));
        });
        cases.one("descriptor", () -> {
            MQMessage sent = text("d");
            sent.replyToQueueName = "REPLY";
            sent.replyToQueueManagerName = "OTHER";
            sent.messageType = CMQC.MQMT_REQUEST;
            sent.report = CMQC.MQRO_COPY_MSG_ID_TO_CORREL_ID;
            sent.groupId = "group".getBytes();
            sent.persistence = CMQC.MQPER_PERSISTENT;
            sent.priority = 7;
            queue.put(sent);
            MQMessage got = get(queue, NONE, 0);
            Harness.same("REPLY OTHER", got.replyToQueueName.trim() + " " + got.replyToQueueManagerName.trim());
            Harness.same(CMQC.MQMT_REQUEST, got.messageType);
            Harness.same(CMQC.MQPER_PERSISTENT, got.persistence);
            Harness.same(7, got.priority);
            Harness.same(1208, got.characterSet);
            Harness.check(Arrays.equals(sent.messageId, got.messageId), "another id");
            Harness.check(got.putDateTime != null && !got.putApplicationName.trim().isEmpty(), "no origin");
        });
        cases.one("empty", () -> fails(2033, () -> get(queue, NONE, 0)));
        cases.one("empty-after-wait", () -> fails(2033, () -> get(queue, NONE, 200)));
        cases.one("waiting-get", () -> {
            MQQueueManager other = connect();
            MQQueue their = other.accessQueue(QUEUE, CMQC.MQOO_OUTPUT);
            Thread late = new Thread(() -> {
                try {
                    Thread.sleep(300);
                    their.put(text("late"));
                } catch (Exception error) {
                    throw new IllegalStateException(error);
                }
            });
            late.start();
            Harness.same("late", read(get(queue, NONE, 20_000)));
            late.join();
            other.disconnect();
        });
        cases.one("put1", () -> {
            qm.put(QUEUE, text("single"));
            Harness.same("single", read(get(queue, NONE, 0)));
        });
        cases.one("put1-unknown", () -> unput(2085, "NO.SUCH"));
        cases.one("put1-denied", () -> unput(2035, "DENIED.QUEUE"));
        cases.one("message-id", () -> {
            MQMessage first = text("first"), second = text("second");
            queue.put(first);
            queue.put(second);
            Harness.check(!Arrays.equals(first.messageId, second.messageId), "same ids");
            MQMessage wanted = new MQMessage();
            wanted.messageId = second.messageId;
            Harness.same("second", read(get(queue, NONE, 0, wanted, CMQC.MQMO_MATCH_MSG_ID)));
            Harness.same("first", read(get(queue, NONE, 0)));
        });
        cases.one("correlation-id", () -> {
            byte[] id = Arrays.copyOf("correlation".getBytes(), 24);
            MQMessage other = text("other"), sent = text("sent");
            sent.correlationId = id;
            queue.put(other);
            queue.put(sent);
            MQMessage wanted = new MQMessage();
            wanted.correlationId = id;
            Harness.same("sent", read(get(queue, NONE, 0, wanted, CMQC.MQMO_MATCH_CORREL_ID)));
            fails(2033, () -> get(queue, NONE, 100, wanted, CMQC.MQMO_MATCH_CORREL_ID));
        });
        cases.one("priority", () -> {
            for (int priority : new int[] {2, 9, 2, 5}) {
                MQMessage sent = text("" + priority);
                sent.priority = priority;
                queue.put(sent);
            }
            StringBuilder seen = new StringBuilder();
            for (int i = 0; i < 4; i++) seen.append(read(get(queue, NONE, 0)));
            Harness.same("9522", seen.toString());
        });
        cases.one("expiry", () -> {
            MQMessage sent = text("gone"), stays = text("stays");
            sent.expiry = 2;
            stays.expiry = 6000;
            queue.put(sent);
            queue.put(stays);
            Thread.sleep(400);
            MQMessage got = get(queue, NONE, 0);
            Harness.same("stays", read(got));
            Harness.check(got.expiry > 5000 && got.expiry <= 6000, got.expiry);
        });
        cases.one("properties", () -> {
            MQMessage sent = text("with");
            sent.setStringProperty("account", "4711");
            sent.setIntProperty("amount", 12);
            queue.put(sent);
            MQMessage got = get(queue, NONE | CMQC.MQGMO_PROPERTIES_FORCE_MQRFH2, 0);
            Harness.same("MQHRF2", got.format.trim());
            Harness.check(got.getDataLength() > 36, got.getDataLength());
        });
        cases.one("convert", () -> {
            MQMessage sent = new MQMessage();
            sent.format = CMQC.MQFMT_STRING;
            sent.characterSet = 500;
            sent.write("DE89 3704".getBytes("Cp500"));
            queue.put(sent);
            MQMessage wanted = new MQMessage();
            wanted.characterSet = 1208;
            MQMessage got = get(queue, NONE | CMQC.MQGMO_CONVERT, 0, wanted, 0);
            Harness.same(1208, got.characterSet);
            byte[] bytes = new byte[got.getDataLength()];
            got.readFully(bytes);
            Harness.same("DE89 3704", new String(bytes, "UTF-8"));
        });
        cases.one("ebcdic-unconverted", () -> {
            MQMessage sent = new MQMessage();
            sent.format = CMQC.MQFMT_NONE;
            sent.characterSet = 37;
            sent.encoding = 785;
            sent.write(new byte[] {(byte) 0xF1, (byte) 0xF2, 0x12, 0x3C});
            queue.put(sent);
            MQMessage got = get(queue, NONE, 0);
            byte[] bytes = new byte[got.getDataLength()];
            got.readFully(bytes);
            Harness.same("[-15, -14, 18, 60]", Arrays.toString(bytes));
            Harness.same("37 785", got.characterSet + " " + got.encoding);
        });
    }

    static void browsing(Harness cases) {
        cases.one("browse", () -> {
            for (String value : new String[] {"a", "b", "c"}) queue.put(text(value));
            StringBuilder seen = new StringBuilder(read(get(queue, CMQC.MQGMO_BROWSE_FIRST, 0)));
            for (int i = 0; i < 2; i++) seen.append(read(get(queue, CMQC.MQGMO_BROWSE_NEXT, 0)));
            Harness.same("abc", seen.toString());
            fails(2033, () -> get(queue, CMQC.MQGMO_BROWSE_NEXT, 0));
            Harness.same("a", read(get(queue, CMQC.MQGMO_BROWSE_FIRST, 0)));
            Harness.same(3, queue.getCurrentDepth());
        });
        cases.one("browse-under-cursor", () -> {
            for (String value : new String[] {"a", "b", "c"}) queue.put(text(value));
            get(queue, CMQC.MQGMO_BROWSE_FIRST, 0);
            Harness.same("b", read(get(queue, CMQC.MQGMO_BROWSE_NEXT, 0)));
            Harness.same("b", read(get(queue, CMQC.MQGMO_BROWSE_MSG_UNDER_CURSOR, 0)));
            Harness.same("b", read(get(queue, NONE | CMQC.MQGMO_MSG_UNDER_CURSOR, 0)));
            Harness.same("c", read(get(queue, CMQC.MQGMO_BROWSE_NEXT, 0)));
            Harness.same("a", read(get(queue, NONE, 0)));
        });
        cases.one("nothing-under-cursor", () -> {
            MQQueue own = qm.accessQueue(QUEUE, BOTH);
            queue.put(text("a"));
            fails(2034, () -> get(own, CMQC.MQGMO_BROWSE_MSG_UNDER_CURSOR, 0));
            own.close();
        });
        cases.one("browse-lock", () -> {
            MQQueue other = qm.accessQueue(QUEUE, BOTH);
            queue.put(text("a"));
            queue.put(text("b"));
            Harness.same("a", read(get(queue, CMQC.MQGMO_BROWSE_FIRST | CMQC.MQGMO_LOCK, 0)));
            Harness.same("b", read(get(other, NONE, 0)));
            fails(2033, () -> get(other, NONE, 0));
            Harness.same("a", read(get(queue, NONE | CMQC.MQGMO_MSG_UNDER_CURSOR, 0)));
            other.close();
        });
        cases.one("browse-by-id", () -> {
            MQMessage first = text("first"), second = text("second");
            queue.put(first);
            queue.put(second);
            MQMessage wanted = new MQMessage();
            wanted.messageId = second.messageId;
            Harness.same("second", read(get(queue, CMQC.MQGMO_BROWSE_FIRST, 0, wanted, CMQC.MQMO_MATCH_MSG_ID)));
            Harness.same("first", read(get(queue, CMQC.MQGMO_BROWSE_FIRST, 0)));
        });
        cases.one("not-open-for-browse", () -> {
            MQQueue own = qm.accessQueue(QUEUE, CMQC.MQOO_INPUT_AS_Q_DEF);
            fails(2036, () -> get(own, CMQC.MQGMO_BROWSE_FIRST, 0));
            own.close();
        });
    }

    static void units(Harness cases) {
        cases.one("rolled-back-put", () -> {
            put(queue, text("never"), CMQC.MQPMO_SYNCPOINT);
            qm.backout();
            fails(2033, () -> get(queue, NONE, 0));
        });
        cases.one("committed-put", () -> {
            put(queue, text("later"), CMQC.MQPMO_SYNCPOINT);
            fails(2033, () -> get(queue, NONE, 0));
            qm.commit();
            Harness.same("later", read(get(queue, NONE, 0)));
        });
        cases.one("rolled-back-get", () -> {
            queue.put(text("again"));
            queue.put(text("next"));
            Harness.same(0, get(queue, UNIT, 0).backoutCount);
            qm.backout();
            MQMessage message = get(queue, UNIT, 0);
            Harness.same("again 1", read(message) + " " + message.backoutCount);
            qm.commit();
            Harness.same("next", read(get(queue, NONE, 0)));
        });
        cases.one("atomic-move", () -> {
            queue.put(text("in"));
            MQQueue out = qm.accessQueue("B.QUEUE", BOTH);
            put(out, text(read(get(queue, UNIT, 0)) + " moved"), CMQC.MQPMO_SYNCPOINT);
            fails(2033, () -> get(out, NONE, 0));
            qm.backout();
            Harness.same(1, queue.getCurrentDepth());
            put(out, text(read(get(queue, UNIT, 0)) + " moved"), CMQC.MQPMO_SYNCPOINT);
            qm.commit();
            Harness.same("in moved", read(get(out, NONE, 0)));
            out.close();
        });
        cases.one("unit-of-one-connection", () -> {
            MQQueueManager other = connect();
            MQQueue their = other.accessQueue(QUEUE, BOTH);
            put(queue, text("mine"), CMQC.MQPMO_SYNCPOINT);
            other.commit();
            fails(2033, () -> get(their, NONE, 0));
            qm.commit();
            Harness.same("mine", read(get(their, NONE, 0)));
            other.disconnect();
        });
        cases.one("disconnect-commits", () -> {
            MQQueueManager other = connect();
            put(other.accessQueue(QUEUE, CMQC.MQOO_OUTPUT), text("kept"), CMQC.MQPMO_SYNCPOINT);
            other.disconnect();
            Harness.same("kept", read(get(queue, NONE, 0)));
        });
    }

    static void objects(Harness cases) {
        cases.one("unknown-queue", () -> fails(2085, () -> qm.accessQueue("NO.SUCH", CMQC.MQOO_OUTPUT)));
        cases.one("other-manager", () -> fails(2086, () -> qm.accessQueue(QUEUE, CMQC.MQOO_OUTPUT, "NO.SUCH", null, null)));
        cases.one("denied-queue", () -> fails(2035, () -> qm.accessQueue("DENIED.QUEUE", CMQC.MQOO_OUTPUT)));
        cases.one("usable-after-denial", () -> {
            fails(2035, () -> qm.accessQueue("DENIED.QUEUE", CMQC.MQOO_INPUT_AS_Q_DEF));
            queue.put(text("still"));
            Harness.same("still", read(get(queue, NONE, 0)));
        });
        cases.one("alias", () -> {
            MQQueue alias = qm.accessQueue("AN.ALIAS", BOTH);
            alias.put(text("by alias"));
            Harness.same("by alias", read(get(queue, NONE, 0)));
            queue.put(text("to alias"));
            Harness.same("to alias", read(get(alias, NONE, 0)));
            alias.close();
        });
        cases.one("alias-of-nothing", () -> fails(2082, () -> qm.accessQueue("A.BROKEN.ALIAS", CMQC.MQOO_OUTPUT)));
        cases.one("not-open-for-output", () -> {
            MQQueue own = qm.accessQueue(QUEUE, CMQC.MQOO_INPUT_AS_Q_DEF);
            fails(2039, () -> own.put(text("x")));
            own.close();
        });
        cases.one("not-open-for-input", () -> {
            MQQueue own = qm.accessQueue(QUEUE, CMQC.MQOO_OUTPUT);
            fails(2037, () -> get(own, NONE, 0));
            own.close();
        });
        cases.one("exclusive", () -> {
            MQQueue own = qm.accessQueue("B.QUEUE", CMQC.MQOO_INPUT_EXCLUSIVE);
            fails(2042, () -> qm.accessQueue("B.QUEUE", CMQC.MQOO_INPUT_SHARED));
            own.close();
            qm.accessQueue("B.QUEUE", CMQC.MQOO_INPUT_SHARED).close();
        });
        cases.one("inquire", () -> {
            queue.put(text("x"));
            Harness.same("1 A.QUEUE", queue.getCurrentDepth() + " " + queue.getName().trim());
            Harness.same(104_857_600, queue.getMaximumMessageLength());
            Harness.check(queue.getOpenInputCount() >= 1 && queue.getOpenOutputCount() >= 1, "counts");
            int[] selectors = {CMQC.MQIA_Q_TYPE, CMQC.MQIA_CURRENT_Q_DEPTH, CMQC.MQCA_Q_NAME, CMQC.MQIA_INHIBIT_PUT};
            int[] numbers = new int[3];
            byte[] names = new byte[48];
            queue.inquire(selectors, numbers, names);
            Harness.same("[1, 1, 0] A.QUEUE", Arrays.toString(numbers) + " " + new String(names).trim());
            fails(2067, () -> queue.inquire(new int[] {CMQC.MQIA_MAX_CHANNELS}, new int[1], new byte[0]));
        });
        cases.one("inquire-manager", () -> {
            Harness.same(Harness.MANAGER, qm.getName().trim());
            Harness.check(qm.getCommandLevel() >= 900 && qm.getMaximumPriority() == 9, qm.getCommandLevel());
        });
        cases.one("set", () -> {
            MQQueue own = qm.accessQueue("B.QUEUE", BOTH | CMQC.MQOO_SET);
            own.setInhibitPut(CMQC.MQQA_PUT_INHIBITED);
            fails(2051, () -> own.put(text("x")));
            own.setInhibitPut(CMQC.MQQA_PUT_ALLOWED);
            own.put(text("x"));
            own.setInhibitGet(CMQC.MQQA_GET_INHIBITED);
            fails(2016, () -> get(own, NONE, 0));
            own.setInhibitGet(CMQC.MQQA_GET_ALLOWED);
            Harness.same("x", read(get(own, NONE, 0)));
            own.close();
        });
        cases.one("dynamic", () -> {
            MQQueue made = qm.accessQueue("SYSTEM.DEFAULT.MODEL.QUEUE", BOTH, null, "REPLY.*", null);
            String name = made.getName().trim();
            Harness.check(name.startsWith("REPLY.") && name.length() > 6, name);
            MQQueue again = qm.accessQueue(name, CMQC.MQOO_OUTPUT);
            again.put(text("r"));
            again.close();
            Harness.same("r", read(get(made, NONE, 0)));
            made.close();
            fails(2085, () -> qm.accessQueue(name, CMQC.MQOO_OUTPUT));
        });
        cases.one("permanent-dynamic", () -> {
            MQQueue made = qm.accessQueue("PERMANENT.MODEL.QUEUE", BOTH, null, "KEPT.*", null);
            String name = made.getName().trim();
            made.put(text("k"));
            made.close();
            MQQueue again = qm.accessQueue(name, BOTH);
            again.closeOptions = CMQC.MQCO_DELETE;
            fails(2055, again::close);
            Harness.same("k", read(get(again, NONE, 0)));
            again.close();
            fails(2085, () -> qm.accessQueue(name, CMQC.MQOO_OUTPUT));
        });
    }

    static void sizes(Harness cases) {
        for (int size : new int[] {0, 1, 4096, 4097, 5000, 32_000, 32_748, 200_000, 1_000_000, Harness.LONGEST}) {
            cases.one("size-" + (size > 1_000_000 ? "longest" : size), () -> {
                byte[] data = Harness.data(size);
                MQMessage message = new MQMessage();
                message.write(data);
                queue.put(message);
                MQMessage got = get(queue, NONE, 0);
                byte[] back = new byte[got.getDataLength()];
                got.readFully(back);
                Harness.check(Arrays.equals(data, back), "other data");
            });
        }
        cases.one("put1-long", () -> {
            byte[] data = Harness.data(100_000);
            MQMessage message = new MQMessage();
            message.write(data);
            qm.put(QUEUE, message);
            Harness.same(data.length, get(queue, NONE, 0).getDataLength());
        });
        cases.one("truncated", () -> {
            queue.put(text("a text that is too long"));
            MQGetMessageOptions how = new MQGetMessageOptions();
            how.options = NONE;
            fails(2080, () -> queue.get(new MQMessage(), how, 6));
            how.options = NONE | CMQC.MQGMO_ACCEPT_TRUNCATED_MSG;
            MQMessage part = new MQMessage();
            fails(2079, () -> queue.get(part, how, 6));
            Harness.same("a text 23", part.readStringOfByteLength(6) + " " + part.getTotalMessageLength());
            fails(2033, () -> get(queue, NONE, 0));
        });
        cases.one("truncated-then-whole", () -> {
            queue.put(text("a text that is too long"));
            MQGetMessageOptions how = new MQGetMessageOptions();
            how.options = NONE;
            fails(2080, () -> queue.get(new MQMessage(), how, 6));
            Harness.same("a text that is too long", read(get(queue, NONE, 0)));
        });
        cases.one("too-long-for-queue", () -> {
            MQMessage message = new MQMessage();
            message.write(new byte[2000]);
            fails(2030, () -> qm.put("SMALL.QUEUE", message));
        });
        cases.one("full", () -> {
            MQQueue small = qm.accessQueue("SMALL.QUEUE", BOTH);
            small.put(text("1"));
            small.put(text("2"));
            fails(2053, () -> small.put(text("3")));
            drain(small);
            small.close();
        });
    }

    static void streams(Harness cases) {
        cases.one("asynchronous-put", () -> {
            for (int i = 0; i < 5; i++) put(queue, text("async" + i), CMQC.MQPMO_ASYNC_RESPONSE | CMQC.MQPMO_NO_SYNCPOINT);
            MQAsyncStatus status = qm.getAsyncStatus();
            Harness.same("5 0 0", status.putSuccessCount + " " + status.putFailureCount + " " + status.reasonCode);
            for (int i = 0; i < 5; i++) Harness.same("async" + i, read(get(queue, NONE, 0)));
        });
        cases.one("asynchronous-put-fails", () -> {
            MQQueue small = qm.accessQueue("SMALL.QUEUE", BOTH);
            for (int i = 0; i < 5; i++) put(small, text("a"), CMQC.MQPMO_ASYNC_RESPONSE | CMQC.MQPMO_NO_SYNCPOINT);
            MQAsyncStatus status = qm.getAsyncStatus();
            Harness.same("2 3 2053", status.putSuccessCount + " " + status.putFailureCount + " " + status.reasonCode);
            drain(small);
            small.close();
        });
        cases.one("read-ahead", () -> {
            MQQueue ahead = qm.accessQueue(QUEUE, CMQC.MQOO_INPUT_SHARED | CMQC.MQOO_READ_AHEAD);
            for (int i = 0; i < 200; i++) queue.put(text("m" + i + " ".repeat(2000)));
            for (int i = 0; i < 200; i++) Harness.same("m" + i, read(get(ahead, NONE, 5000)).trim());
            fails(2033, () -> get(ahead, NONE, 100));
            ahead.close();
        });
    }

    /** The classes for Java do not reconnect by themselves, those for JMS do. */
    static void outages(Harness cases) {
        cases.one("connection-lost", () -> {
            MQQueueManager other = connect();
            MQQueue own = other.accessQueue(QUEUE, BOTH);
            own.put(persistent("kept"));
            own.put(text("lost"));
            put(own, persistent("never"), CMQC.MQPMO_SYNCPOINT);
            get(own, UNIT, 0);
            Harness.ask("restart");
            try {
                own.put(text("x"));
                throw new IllegalStateException("no failure");
            } catch (MQException error) {
                Harness.check(error.reasonCode == 2009 || error.reasonCode == 2161 || error.reasonCode == 2162, error.reasonCode);
            }
            qm = connect();
            queue = qm.accessQueue(QUEUE, BOTH);
            Harness.same("kept", read(get(queue, NONE, 0)));
            fails(2033, () -> get(queue, NONE, 0));
        });
    }
}
