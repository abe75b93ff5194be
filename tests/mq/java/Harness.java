import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;

/** One line a case: what Cases and JmsCases share.  Where to connect is told by system properties. */
class Harness {
    static final String HOST = System.getProperty("mq.host", "127.0.0.1");
    static final int PORT = Integer.getInteger("mq.port", 1414);
    static final String CHANNEL = System.getProperty("mq.channel", "APP.SVRCONN");
    static final String MANAGER = System.getProperty("mq.manager", "QM1");
    /** A cipher suite of JSSE; none: plain text.  Stores are named by the properties javax.net.ssl.*. */
    static final String CIPHER = System.getProperty("mq.cipher");
    /** Conversations that one socket may carry. */
    static final int SHARING = Integer.getInteger("mq.sharing", 10);
    /** Bytes of the longest message that is tried. */
    static final int LONGEST = Integer.getInteger("mq.longest", 1_000_000);

    interface Body { void run() throws Exception; }

    private final List<String> wanted;
    private final List<String> left;
    private final Body before;

    /** Cases by these names, or all; `before` runs in front of each. */
    Harness(String[] wanted, Body before) {
        this.wanted = Arrays.asList(wanted);
        this.left = Arrays.asList(System.getProperty("mq.without", "").split(","));
        this.before = before;
    }

    void one(String name, Body body) {
        if (!wanted.isEmpty() && !wanted.contains(name) || left.contains(name)) return;
        try {
            before.run();
            body.run();
            System.out.println("case " + name + " ok");
        } catch (Throwable error) {
            List<String> told = new ArrayList<>();
            for (Throwable each = error; each != null; each = each.getCause()) told.add(each.toString().replaceAll("\\s+", " "));
            for (StackTraceElement at : error.getStackTrace()) if (at.getClassName().contains("ases")) told.add("" + at.getLineNumber());
            System.out.println("case " + name + " FAIL " + String.join(" | ", told));
        }
    }

    static void check(boolean condition, Object what) {
        if (!condition) throw new IllegalStateException("" + what);
    }

    static void same(Object wanted, Object found) {
        if (!wanted.equals(found)) throw new IllegalStateException(found + " instead of " + wanted);
    }

    /** Ask the other end of our standard input for something, and wait until it is done. */
    static void ask(String what) throws IOException {
        System.out.println("ask " + what);
        check(System.in.read() == '\n', "nobody does it");
    }

    static byte[] data(int size) {
        byte[] made = new byte[size];
        for (int i = 0; i < size; i++) made[i] = (byte) (i * 31 + i / 255);
        return made;
    }

    /** A client channel definition table, which can say how many conversations share a socket. */
    static String table() throws IOException {
        Path file = Files.createTempFile(Path.of("."), "ccdt", ".json");
        String text = "{'channel':[{'name':'" + CHANNEL + "','type':'clientConnection','clientConnection':{'connection':[{'host':'" + HOST
            + "','port':" + PORT + "}],'queueManager':'" + MANAGER + "'},'connectionManagement':{'sharingConversations':" + SHARING + "}"
            + (CIPHER == null ? "" : ",'transmissionSecurity':{'cipherSpecification':'" + CIPHER.replace("TLS_ECDHE_ECDSA_WITH_", "ECDHE_ECDSA_") + "'}") + "}]}";
        Files.write(file, Collections.singletonList(text.replace('\'', '"')));
        return file.toUri().toString();
    }
}
