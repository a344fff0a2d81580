"""Sentences of our own in other languages: what the language check has to find."""

from __future__ import annotations

# (language, question, answer); written for this project, in the public domain like any everyday
# sentence.
FOREIGN = (
    (
        "es",
        "¿Cuál es la mejor época para plantar tomates en un huerto pequeño?",
        (
            "Lo mejor es plantarlos en primavera, cuando ya no hay peligro de heladas y el suelo"
            " está templado."
        ),
    ),
    (
        "es",
        "Explica en dos frases por qué el cielo se ve azul durante el día.",
        (
            "La luz del sol choca con las moléculas del aire. "
            "La luz azul se dispersa más que la roja y llega a nuestros ojos."
        ),
    ),
    (
        "es",
        "Escribe una nota breve para agradecer a un vecino su ayuda.",
        "Querido vecino: muchas gracias por ayudarme a llevar las cajas. Fue un gesto muy amable.",
    ),
    (
        "es",
        "¿Cuántos días tiene el mes de febrero en un año bisiesto?",
        "En un año bisiesto el mes de febrero tiene veintinueve días en lugar de veintiocho.",
    ),
    (
        "es",
        "Dame tres consejos para dormir mejor por la noche.",
        (
            "Acuéstate siempre a la misma hora, evita las pantallas antes de dormir y no tomes café"
            " por la tarde."
        ),
    ),
    (
        "fr",
        "Comment peut-on réduire sa consommation d'eau à la maison ?",
        "Prenez des douches plus courtes, réparez les fuites et arrosez le jardin tôt le matin.",
    ),
    (
        "fr",
        "Explique simplement pourquoi les feuilles tombent en automne.",
        (
            "Quand les jours raccourcissent, l'arbre économise son énergie et laisse tomber ses"
            " feuilles."
        ),
    ),
    (
        "fr",
        "Rédige une invitation courte pour un dîner entre amis samedi soir.",
        (
            "Chers amis, je vous invite à dîner chez moi samedi soir à vingt heures. Dites-moi si"
            " vous venez."
        ),
    ),
    (
        "fr",
        "Quelle est la différence entre un lac et une mer ?",
        (
            "Un lac est entouré de terre et souvent d'eau douce, tandis qu'une mer est salée et"
            " reliée à l'océan."
        ),
    ),
    (
        "fr",
        "Donne trois idées de repas rapides pour un soir de semaine.",
        (
            "Une omelette aux légumes, une soupe de lentilles ou des pâtes avec une sauce tomate"
            " maison."
        ),
    ),
    (
        "de",
        "Wie bleibt frisches Brot möglichst lange weich?",
        (
            "Am besten bewahrt man das Brot in einem Leinenbeutel auf und legt es nicht in den"
            " Kühlschrank."
        ),
    ),
    (
        "de",
        "Erkläre in einem Satz, warum Eis auf dem Wasser schwimmt.",
        "Eis hat eine geringere Dichte als flüssiges Wasser und wird deshalb nach oben getragen.",
    ),
    (
        "de",
        "Schreibe eine kurze Entschuldigung für eine verspätete Antwort.",
        "Bitte entschuldigen Sie meine späte Antwort, ich war in der letzten Woche leider krank.",
    ),
    (
        "de",
        "Welche Werkzeuge braucht man, um ein Regal aufzubauen?",
        (
            "Man braucht meistens einen Schraubendreher, eine Wasserwaage, einen Hammer und etwas"
            " Geduld."
        ),
    ),
    (
        "de",
        "Nenne drei Gründe, öfter mit dem Fahrrad zu fahren.",
        "Es ist gesund, es kostet wenig Geld und es schont die Umwelt in der Stadt.",
    ),
    (
        "it",
        "Come si prepara un buon caffè con la moka?",
        "Riempi la base con acqua fredda, metti il caffè senza pressarlo e scalda a fuoco basso.",
    ),
    (
        "it",
        "Spiega perché di notte vediamo le stelle e di giorno no.",
        "Di giorno la luce del sole è troppo forte e nasconde quella debole delle stelle lontane.",
    ),
    (
        "it",
        "Scrivi un breve messaggio di auguri per il compleanno di un amico.",
        "Tanti auguri, caro amico! Ti auguro una giornata bellissima e un anno pieno di gioia.",
    ),
    (
        "it",
        "Quali verdure si possono coltivare sul balcone?",
        "Sul balcone crescono bene i pomodori, l'insalata, il basilico e i peperoncini.",
    ),
    (
        "pt",
        "Como posso organizar melhor o meu tempo de estudo?",
        "Faça uma lista das tarefas, estude em blocos curtos e descanse alguns minutos entre eles.",
    ),
    (
        "pt",
        "Explique por que o mar é salgado em poucas palavras.",
        "Os rios levam sais das rochas até ao mar, e a água evapora mas o sal fica.",
    ),
    (
        "pt",
        "Escreva uma frase para agradecer um presente inesperado.",
        "Muito obrigado pelo presente, foi uma surpresa maravilhosa e deixou-me muito feliz.",
    ),
    (
        "nl",
        "Hoe maak je een fietsband weer heel zonder nieuwe band?",
        "Zoek het gaatje met water, maak de plek schoon en plak er een stukje rubber op.",
    ),
    (
        "nl",
        "Leg kort uit waarom de dagen in de winter korter zijn.",
        "De aarde staat schuin, waardoor de zon in de winter lager staat en korter schijnt.",
    ),
    (
        "pl",
        "Jak dbać o rośliny doniczkowe podczas wakacji?",
        "Podlej je obficie przed wyjazdem i postaw w cieniu albo poproś sąsiada o pomoc.",
    ),
    (
        "sv",
        "Hur lagar man en enkel soppa av grönsaker?",
        "Skär grönsakerna i bitar, koka dem mjuka i buljong och smaka av med salt och peppar.",
    ),
    (
        "ru",
        "Как быстро проветрить комнату зимой и не замёрзнуть?",
        "Откройте окно настежь на пять минут и на это время выйдите в другую комнату.",
    ),
    (
        "ru",
        "Объясни простыми словами, почему луна меняет форму.",
        "Солнце освещает только половину луны, и мы видим разную часть этой половины.",
    ),
    (
        "uk",
        "Які книги варто прочитати дитині десяти років?",
        "Добре підійдуть пригодницькі повісті, казки різних народів та книги про тварин.",
    ),
    (
        "el",
        "Πώς μπορώ να μάθω μια ξένη γλώσσα πιο γρήγορα;",
        "Διάβαζε λίγο κάθε μέρα, άκουγε τραγούδια και μίλα συχνά με άλλους ανθρώπους.",
    ),
    (
        "tr",
        "Evde kolayca nasıl yoğurt yapılır, kısaca anlat.",
        "Sütü kaynatıp ılıt, bir kaşık yoğurt ekle, üzerini ört ve gece boyunca bekle.",
    ),
    (
        "zh",
        "怎样才能在家里种好一盆薄荷？",
        "选一个有阳光的窗台，保持土壤湿润，每两周剪一次枝叶，薄荷就会长得很好。",
    ),
    (
        "zh",
        "请用一句话解释为什么会下雨。",
        "水蒸气在高空遇冷变成小水滴，水滴越来越大，最后落到地面就是雨。",
    ),
    (
        "zh",
        "写一条短信，告诉同事会议改到明天上午。",
        "您好，今天的会议改到明天上午十点，地点不变，请准时参加，谢谢。",
    ),
    (
        "ja",
        "朝早く起きるためのこつを教えてください。",
        "毎晩同じ時間に寝て、目覚まし時計をベッドから離れた所に置くとよいです。",
    ),
    (
        "ja",
        "友達に本を返すときの短いお礼を書いてください。",
        "面白い本を貸してくれてありがとう。とても楽しく読みました。",
    ),
    (
        "ko",
        "비 오는 날 집에서 할 수 있는 일을 알려 주세요.",
        "책을 읽거나 따뜻한 차를 마시며 가족과 함께 보드게임을 하면 좋습니다.",
    ),
    (
        "ar",
        "كيف أحافظ على نظافة مكتبي كل يوم؟",
        "رتب الأوراق في نهاية اليوم وامسح الطاولة وضع كل شيء في مكانه.",
    ),
    (
        "hi",
        "घर पर अच्छी चाय कैसे बनाई जाती है?",
        "पानी में अदरक और चाय की पत्ती उबालें, फिर दूध और चीनी डालकर कुछ देर पकाएँ।",
    ),
    (
        "vi",
        "Làm thế nào để giữ rau tươi lâu hơn trong tủ lạnh?",
        "Bạn nên rửa sạch, để ráo nước rồi bọc rau trong giấy trước khi cho vào tủ lạnh.",
    ),
)
