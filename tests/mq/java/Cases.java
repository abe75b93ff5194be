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
    static String manager;
    static Hashtable<String, Object> properties = new Hashtable<>();

    interface Body { void run() throws Exception; }

    static void check(boolean condition, String what) {
        if (!condition) throw new IllegalStateException(what);
    }

    static java.util.List<String> wanted;

    static void one(String name, Body body) {
        if (!wanted.isEmpty() && !wanted.contains(name)) return;
        try {
            body.run();
            System.out.println("case " + name + " ok");
        } catch (Throwable error) {
            System.out.println("case " + name + " FAIL " + error);
        }
    }

    static void fails(int reason, Body body) throws Exception {
        try {
            body.run();
        } catch (MQException error) {
            check(error.reasonCode == reason, "reason " + error.reasonCode + " instead of " + reason);
            return;
        }
        throw new IllegalStateException("no failure, wanted " + reason);
    }

    static MQQueueManager connect() throws MQException { return new MQQueueManager(manager, properties); }

    static MQMessage text(String value) throws Exception {
        MQMessage message = new MQMessage();
        message.format = CMQC.MQFMT_STRING;
        message.characterSet = 1208;
        message.writeString(value);
        return message;
    }

    static String read(MQMessage message) throws Exception { return message.readStringOfByteLength(message.getDataLength()); }

    static MQMessage get(MQQueue queue, int options, int wait) throws Exception {
        MQGetMessageOptions how = new MQGetMessageOptions();
        how.options = options | (wait > 0 ? CMQC.MQGMO_WAIT : 0);
        how.waitInterval = wait;
        MQMessage message = new MQMessage();
        queue.get(message, how);
        return message;
    }

    public static void main(String[] arguments) throws Exception {
        manager = arguments[0];
        properties.put(MQConstants.HOST_NAME_PROPERTY, arguments[1]);
        properties.put(MQConstants.PORT_PROPERTY, Integer.parseInt(arguments[2]));
        properties.put(MQConstants.CHANNEL_PROPERTY, arguments[3]);
        properties.put(MQConstants.TRANSPORT_PROPERTY, MQConstants.TRANSPORT_MQSERIES_CLIENT);
        wanted = Arrays.asList(arguments).subList(4, arguments.length);
        int both = CMQC.MQOO_INPUT_AS_Q_DEF | CMQC.MQOO_OUTPUT | CMQC.MQOO_BROWSE | CMQC.MQOO_INQUIRE;
        MQQueueManager qm = connect();
        MQQueue queue = qm.accessQueue("A.QUEUE", both);
        int none = CMQC.MQGMO_NO_SYNCPOINT;

        one("put-get", () -> {
            queue.put(text("hello"));
            check(read(get(queue, none, 0)).equals("hello"), "other text");
        });
        one("empty", () -> fails(2033, () -> get(queue, none, 0)));
        one("empty-after-wait", () -> fails(2033, () -> get(queue, none, 200)));
        one("put1", () -> {
            qm.put("A.QUEUE", text("single"));
            check(read(get(queue, none, 100)).equals("single"), "other text");
        });
        one("ids", () -> {
            MQMessage first = text("first"), second = text("second");
            queue.put(first);
            queue.put(second);
            check(!Arrays.equals(first.messageId, second.messageId), "same ids");
            MQMessage wanted = new MQMessage();
            wanted.messageId = second.messageId;
            MQGetMessageOptions how = new MQGetMessageOptions();
            how.options = none;
            how.matchOptions = CMQC.MQMO_MATCH_MSG_ID;
            queue.get(wanted, how);
            check(read(wanted).equals("second"), "other message");
            check(read(get(queue, none, 0)).equals("first"), "other message");
        });
        one("browse", () -> {
            for (String value : new String[] {"a", "b", "c"}) queue.put(text(value));
            StringBuilder seen = new StringBuilder(read(get(queue, CMQC.MQGMO_BROWSE_FIRST, 0)));
            for (int i = 0; i < 2; i++) seen.append(read(get(queue, CMQC.MQGMO_BROWSE_NEXT, 0)));
            check(seen.toString().equals("abc"), seen.toString());
            fails(2033, () -> get(queue, CMQC.MQGMO_BROWSE_NEXT, 0));
            for (int i = 0; i < 3; i++) get(queue, none, 0);
        });
        one("rolled-back-put", () -> {
            MQPutMessageOptions how = new MQPutMessageOptions();
            how.options = CMQC.MQPMO_SYNCPOINT;
            queue.put(text("never"), how);
            qm.backout();
            fails(2033, () -> get(queue, none, 0));
        });
        one("committed-put", () -> {
            MQPutMessageOptions how = new MQPutMessageOptions();
            how.options = CMQC.MQPMO_SYNCPOINT;
            queue.put(text("later"), how);
            fails(2033, () -> get(queue, none, 0));
            qm.commit();
            check(read(get(queue, none, 0)).equals("later"), "other text");
        });
        one("rolled-back-get", () -> {
            queue.put(text("again"));
            check(get(queue, CMQC.MQGMO_SYNCPOINT, 0).backoutCount == 0, "count");
            qm.backout();
            MQMessage message = get(queue, CMQC.MQGMO_SYNCPOINT, 0);
            check(message.backoutCount == 1, "count " + message.backoutCount);
            qm.commit();
            fails(2033, () -> get(queue, none, 0));
        });
        one("depth", () -> {
            queue.put(text("x"));
            check(queue.getCurrentDepth() == 1, "depth " + queue.getCurrentDepth());
            get(queue, none, 0);
        });
        one("unknown-queue", () -> fails(2085, () -> qm.accessQueue("NO.SUCH", CMQC.MQOO_OUTPUT)));
        one("denied-queue", () -> fails(2035, () -> qm.accessQueue("DENIED.QUEUE", CMQC.MQOO_OUTPUT)));
        one("usable-after-denial", () -> {
            queue.put(text("still"));
            check(read(get(queue, none, 0)).equals("still"), "other text");
        });
        one("dynamic", () -> {
            MQQueue made = qm.accessQueue("SYSTEM.DEFAULT.MODEL.QUEUE", both, null, "REPLY.*", null);
            check(made.getName().startsWith("REPLY."), made.getName());
            made.put(text("r"));
            check(read(get(made, none, 0)).equals("r"), "other text");
            made.close();
        });
        for (int size : new int[] {0, 1, 5000, 200_000, 1_000_000}) {
            one("size-" + size, () -> {
                byte[] data = new byte[size];
                for (int i = 0; i < size; i++) data[i] = (byte) (i * 31 + i / 255);
                MQMessage message = new MQMessage();
                message.write(data);
                queue.put(message);
                MQMessage got = get(queue, none, 0);
                byte[] back = new byte[got.getDataLength()];
                got.readFully(back);
                check(Arrays.equals(data, back), "other data");
            });
        }
        one("asynchronous-put", () -> {
            MQPutMessageOptions how = new MQPutMessageOptions();
            how.options = CMQC.MQPMO_ASYNC_RESPONSE | CMQC.MQPMO_NO_SYNCPOINT;
            for (int i = 0; i < 5; i++) queue.put(text("async" + i), how);
            for (int i = 0; i < 5; i++) check(read(get(queue, none, 1000)).equals("async" + i), "other text");
        });
        one("many-conversations", () -> {
            MQQueueManager[] others = new MQQueueManager[32];
            for (int i = 0; i < others.length; i++) {
                others[i] = connect();
                MQQueue own = others[i].accessQueue("A.QUEUE", both);
                own.put(text("c" + i));
                check(read(get(own, none, 0)).equals("c" + i), "other text");
                own.close();
            }
            for (MQQueueManager other : others) other.disconnect();
        });
        one("waiting-get", () -> {
            MQQueueManager other = connect();
            MQQueue their = other.accessQueue("A.QUEUE", CMQC.MQOO_OUTPUT);
            Thread late = new Thread(() -> {
                try {
                    Thread.sleep(300);
                    their.put(text("late"));
                } catch (Exception error) {
                    throw new IllegalStateException(error);
                }
            });
            late.start();
            check(read(get(queue, none, 5000)).equals("late"), "other text");
            late.join();
            other.disconnect();
        });
        one("disconnect", () -> {
            queue.close();
            qm.disconnect();
        });
    }
}
